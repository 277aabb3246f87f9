"""Comparisons: one row a key, counted at each start, written once. Each function is one short transaction."""

from collections.abc import Collection, Mapping
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from tasks.contracts import Comparison, EngineConfig, FaceComparison, StoredFile
from tasks.database.engine import reading, writing
from tasks.database.insert import insert_once
from tasks.database.leases import Lease, prove
from tasks.database.rows import to_comparison
from tasks.database.status import trace
from tasks.database.tables import AuditRow, ComparisonRow
from tasks.database.types import clock

STARTED, STORED = "computation_started", "comparison_stored"
LOST, CUT_OFF = "computation_lost", "computation_cut_off"
"""Events of the audit trail."""


def begin_comparison(
    engine: Engine,
    lease: Lease,
    key: str,
    reference: StoredFile,
    probe: StoredFile,
    engine_config: EngineConfig,
    *,
    by: str,
) -> Comparison | None:
    """The finished comparison; or None after counting that the lease's owner now computes it.

    Raises:
        LeaseLost: somebody else owns the comparison.
    """
    with writing(engine) as session:
        prove(session, lease)
        insert_once(
            session,
            ComparisonRow,
            comparison_key=key,
            reference_sha256=reference.sha256,
            probe_sha256=probe.sha256,
            engine=engine_config.model_dump(mode="json"),
            fingerprint=engine_config.fingerprint(),
            computations=0,
            started_at=clock(),
            started_by=by,
        )
        count = session.scalar(
            update(ComparisonRow)
            .where(ComparisonRow.comparison_key == key, ComparisonRow.finished_at.is_(None))
            .values(computations=ComparisonRow.computations + 1, started_at=clock(), started_by=by)
            .returning(ComparisonRow.computations)
            .execution_options(synchronize_session=False)
        )
        if count is not None:
            trace(session, STARTED, by=by, comparison_key=key, detail=f"start {count}")
        return _stored(session, key)


def finish_comparison(
    engine: Engine, lease: Lease, key: str, *, result: FaceComparison, picture_key: str | None, by: str
) -> Comparison:
    """Store the result of a computation that was begun, unless one is there; the row that is there.

    Raises:
        LeaseLost: somebody else owns the comparison. Nothing is written.
    """
    with writing(engine) as session:
        prove(session, lease)
        written = session.scalar(
            update(ComparisonRow)
            .where(ComparisonRow.comparison_key == key, ComparisonRow.finished_at.is_(None))
            .values(
                result=result.model_dump(mode="json"),
                similarity=result.similarity,
                picture_key=picture_key,
                finished_at=clock(),
            )
            .returning(ComparisonRow.computations)
            .execution_options(synchronize_session=False)
        )
        if written is not None:
            trace(session, STORED, by=by, comparison_key=key)
        stored = _stored(session, key)
        if stored is None:
            raise AssertionError(f"Comparison {key} is finished though it was never begun.")
        return stored


def get_comparison(engine: Engine, key: str) -> Comparison | None:
    """The comparison when it is finished, else None."""
    with reading(engine) as session:
        return _stored(session, key)


class Loss(NamedTuple):
    """What a flow run whose process is gone computed."""

    computing: bool = False
    """Whether it computed when its process died."""
    deaths: int = 0
    """How often a process has died while it computed, now included."""


def losses(engine: Engine, lost: Mapping[UUID, str], workers: Mapping[UUID, str]) -> dict[UUID, Loss]:
    """What these lost runs computed. One query.

    A worker computes one comparison at a time. Of its lost runs that had begun and stored nothing, the one that began
    last computed; the others were about to store what they had.

    Args:
        lost: flow runs whose process is gone, and the comparison that each was for.
        workers: the worker that had each run.
    """
    if not lost:
        return {}
    with reading(engine) as session:
        told = _events(session, lost.values())
    events = {run_id: told.get((key, _run(run_id)), []) for run_id, key in lost.items()}
    begun = sorted((own[-1].id, run_id) for run_id, own in events.items() if own and own[-1].event == STARTED)
    last = {workers[run_id]: run_id for _, run_id in begun}
    return {
        run_id: Loss(
            computing := last.get(workers[run_id]) == run_id, sum(line.event == LOST for line in own) + computing
        )
        for run_id, own in events.items()
    }


def note_loss(engine: Engine, key: str, flow_run_id: UUID, *, computing: bool, by: str) -> None:
    """Note in the audit trail that a process died after this run had begun in it, if it had, and had stored nothing.

    Args:
        computing: whether it computed then; else it was cut off before it could store what it had.
    """
    run = _run(flow_run_id)
    with writing(engine) as session:
        own = _events(session, [key]).get((key, run))
        if own and own[-1].event == STARTED:
            trace(session, LOST if computing else CUT_OFF, by=by, comparison_key=key, detail=run)


def _events(session: Session, keys: Collection[str]) -> dict[tuple[str, str], list[AuditRow]]:
    """By comparison and run, what became of its computation, in order. After a start that comes last, it goes on."""
    told = AuditRow.comparison_key.in_(keys) & AuditRow.event.in_([STARTED, STORED, LOST, CUT_OFF])
    found: dict[tuple[str, str], list[AuditRow]] = {}
    for line in session.scalars(select(AuditRow).where(told).order_by(AuditRow.id)):
        run = str(line.detail) if line.event in {LOST, CUT_OFF} else line.actor
        found.setdefault((str(line.comparison_key), run), []).append(line)
    return found


def _run(flow_run_id: UUID) -> str:
    return f"flow run {flow_run_id}"


def finished(engine: Engine, keys: Collection[str]) -> set[str]:
    """Which of these comparisons are finished. One query."""
    with reading(engine) as session:
        there = ComparisonRow.comparison_key.in_(keys) & ComparisonRow.finished_at.is_not(None)
        return set(session.scalars(select(ComparisonRow.comparison_key).where(there)))


def _stored(session: Session, key: str) -> Comparison | None:
    row = session.get(ComparisonRow, key)
    return None if row is None else to_comparison(row)
