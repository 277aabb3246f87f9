"""What happens in a chaos run, drawn from its seed: the sessions, their uploads, and the faults."""

import random
from dataclasses import dataclass
from enum import StrEnum


class Card(StrEnum):
    """Which card a session shows, and so what is right."""

    GENUINE = "match"
    IMPOSTOR = "no_match"
    FACELESS = "rejected"


class Moment(StrEnum):
    """Where a worker is killed."""

    STARTING = "gpu: a run is being started"
    BEFORE_LEASE = "gpu: before the lease"
    COMPUTING = "gpu: in the computation"
    STORED = "gpu: after the row is stored"
    BEFORE_STATE = "gpu: decided, before the state is set"
    SWEEPING = "upkeep: in a sweep"

    @property
    def pool(self) -> str:
        """Whose worker."""
        return self.split(":")[0]


class Away(StrEnum):
    """What is away for a while."""

    PREFECT = "prefect"
    DATABASE = "database"
    STORAGE = "storage"


@dataclass(frozen=True)
class Upload:
    """One file sent, `after_seconds` since the beginning; `times` at once."""

    kind: str
    after_seconds: float
    times: int


@dataclass(frozen=True)
class PlannedSession:
    """One session. Those with the same card and serial have the same two files."""

    session_id: str
    card: Card
    serial: int
    uploads: tuple[Upload, ...]
    extra_triggers: int


@dataclass(frozen=True)
class Plan:
    """Sessions, and the faults in their order."""

    sessions: tuple[PlannedSession, ...]
    kills: tuple[Moment, ...]


def draw(seed: int, sessions: int, kills: int, spread_seconds: float) -> Plan:
    """The plan of a seed: always the same. One session in five has the files of another one."""
    chance = random.Random(seed)
    planned: list[PlannedSession] = []
    for number in range(sessions):
        if planned and number % 5 == 4:
            twin = chance.choice(planned)
            card, serial = twin.card, twin.serial
        else:
            card, serial = chance.choices(list(Card), weights=(6, 3, 1))[0], number
        kinds = ["id_image", "selfie_video"]
        chance.shuffle(kinds)
        first = chance.uniform(0, spread_seconds)
        gap = chance.choice((0.0, chance.uniform(0, 5), chance.uniform(5, 40)))
        planned.append(
            PlannedSession(
                f"chaos-{seed}-{number}",
                card,
                serial,
                tuple(
                    Upload(kind, at, chance.choice((1, 1, 2)))
                    for kind, at in zip(kinds, (first, first + gap), strict=True)
                ),
                chance.choice((0, 0, 3)),
            )
        )
    # Each moment before any moment twice; first those that do not come again once all is compared.
    late = [Moment.STORED, Moment.STARTING, Moment.BEFORE_STATE]
    early = [moment for moment in Moment if moment not in late]
    rounds = [
        [*chance.sample(early, len(early)), *chance.sample(late, len(late))] for _ in range(kills // len(Moment) + 1)
    ]
    return Plan(tuple(planned), tuple(moment for one in rounds for moment in one)[:kills])
