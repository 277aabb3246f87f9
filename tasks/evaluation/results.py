"""What an evaluation found: plain figures about many pairs, and nothing about a single person.

Words: a *genuine* pair shows one person, an *impostor* pair two. ISO/IEC 19795-1 defines the rates.
"""

from typing import Annotated, NamedTuple

from pydantic import Field

from tasks.contracts import EngineConfig, Plain


class Wanted(NamedTuple):
    """An operating point to look at: at a threshold, or (`threshold` None) where the FMR is at most `fmr`."""

    name: str
    threshold: float | None = None
    fmr: float | None = None


Share = Annotated[float, Field(ge=0, le=1)]


class Rate(Plain):
    """`count` of `of`, as a share, with its 95 % interval."""

    count: Annotated[int, Field(ge=0)]
    of: Annotated[int, Field(ge=1)]
    value: Share
    low: Share
    high: Share


class OperatingPoint(Plain):
    """The error rates at one threshold: a pair matches when its score is at or above it."""

    name: str
    threshold: float
    wanted_fmr: Annotated[float | None, Field(description="The FMR that the threshold was chosen for, on these pairs.")]
    pairs_needed: Annotated[int | None, Field(description="Impostor pairs that can show the wanted FMR: rule of 3.")]
    fmr: Annotated[Rate, Field(description="False match rate: of impostor pairs scored, those that match.")]
    fnmr: Annotated[Rate, Field(description="False non-match rate: of genuine pairs scored, those that do not match.")]
    frr: Annotated[Rate, Field(description="False rejection rate: the same of all genuine pairs, unscored ones too.")]

    @property
    def supported(self) -> bool:
        """Whether there are impostor pairs enough to show the FMR that the threshold was chosen for."""
        return self.pairs_needed is None or self.fmr.of >= self.pairs_needed


class PipelineResult(Plain):
    """What one pipeline did with the pairs. Thresholds are scores: cosines, -1 to 1."""

    name: str
    failures: Annotated[dict[str, int], Field(description="Pictures without a template (failure to acquire), by why.")]
    complaints: Annotated[dict[str, int], Field(description="Pictures scored though outside of the quality bounds.")]
    genuine: Annotated[int, Field(ge=1, description="Genuine pairs scored.")]
    impostor: Annotated[int, Field(ge=1, description="Impostor pairs scored.")]
    genuine_unscored: Annotated[int, Field(ge=0, description="Genuine pairs of which a picture failed.")]
    impostor_unscored: Annotated[int, Field(ge=0)]
    accuracy: Annotated[Rate, Field(description="Largest share of pairs scored that one threshold decides rightly.")]
    accuracy_threshold: float
    eer: Annotated[Share, Field(description="Equal error rate: where FMR and FNMR are the same.")]
    eer_threshold: float
    genuine_spread: Annotated[tuple[float, float], Field(description="Mean, standard deviation of genuine scores.")]
    impostor_spread: Annotated[tuple[float, float], Field(description="The same of impostor scores.")]
    auc: Annotated[Share, Field(description="Chance that a genuine pair scores above an impostor pair.")]
    points: tuple[OperatingPoint, ...]

    def point(self, name: str) -> OperatingPoint | None:
        """The operating point of that name, if it was looked at."""
        return next((point for point in self.points if point.name == name), None)


class Evaluation(Plain):
    """An evaluation's report: aggregates only, so that it may be seen on the Prefect server."""

    pictures: Annotated[int, Field(ge=2)]
    pairs: Annotated[int, Field(ge=2)]
    repeated: Annotated[int, Field(ge=0, description="Pairs that are in the list already, in either order.")]
    engine: EngineConfig
    device: str
    wanted_fmr: Annotated[float, Field(gt=0, lt=1)]
    kycflow: PipelineResult
    deepface: PipelineResult | None = None
    embedded: Annotated[int, Field(ge=0, description="Pictures embedded by this run; the others were known.")]
    seconds: Annotated[float, Field(ge=0, description="Wall time of this run.")]

    @property
    def suggested(self) -> OperatingPoint:
        """The smallest threshold whose FMR on these pairs is at most the wanted one, and the rates there."""
        return next(point for point in self.kycflow.points if point.wanted_fmr == self.wanted_fmr)
