"""Comparisons: one row a key, counted at each start, written once. Each function is one short transaction."""

from sqlalchemy import Engine, update
from sqlalchemy.orm import Session

from tasks.contracts import Comparison, EngineConfig, FaceComparison
from tasks.database.engine import reading, writing
from tasks.database.insert import insert_once
from tasks.database.rows import to_comparison
from tasks.database.tables import ComparisonRow
from tasks.database.types import clock


def begin_comparison(
    engine: Engine, key: str, reference_sha256: str, probe_sha256: str, engine_config: EngineConfig, owner: str
) -> Comparison | None:
    """The finished comparison; or None after counting that `owner` (a flow run's id, say) now computes it."""
    with writing(engine) as session:
        _insert(session, key, reference_sha256, probe_sha256, engine_config, owner)
        started = update(ComparisonRow).where(ComparisonRow.comparison_key == key, ComparisonRow.finished_at.is_(None))
        session.execute(
            started.values(
                computations=ComparisonRow.computations + 1, started_at=clock(), started_by=owner
            ).execution_options(synchronize_session=False)
        )
        return to_comparison(session.get_one(ComparisonRow, key))


def finish_comparison(
    engine: Engine,
    key: str,
    reference_sha256: str,
    probe_sha256: str,
    engine_config: EngineConfig,
    *,
    result: FaceComparison,
    picture_key: str | None,
) -> Comparison:
    """Store a result, unless one is there; the row that is there. A row that was never begun here is made."""
    with writing(engine) as session:
        _insert(session, key, reference_sha256, probe_sha256, engine_config, "unknown", computations=1)
        unfinished = update(ComparisonRow).where(
            ComparisonRow.comparison_key == key, ComparisonRow.finished_at.is_(None)
        )
        session.execute(
            unfinished.values(
                result=result.model_dump(mode="json"),
                similarity=result.similarity,
                picture_key=picture_key,
                finished_at=clock(),
            ).execution_options(synchronize_session=False)
        )
        stored = to_comparison(session.get_one(ComparisonRow, key))
        if stored is None:
            raise AssertionError(f"Comparison {key} is not finished after it was.")
        return stored


def get_comparison(engine: Engine, key: str) -> Comparison | None:
    """The comparison when it is finished, else None."""
    with reading(engine) as session:
        row = session.get(ComparisonRow, key)
        return None if row is None else to_comparison(row)


def _insert(
    session: Session,
    key: str,
    reference_sha256: str,
    probe_sha256: str,
    engine_config: EngineConfig,
    owner: str,
    computations: int = 0,
) -> None:
    insert_once(
        session,
        ComparisonRow,
        comparison_key=key,
        reference_sha256=reference_sha256,
        probe_sha256=probe_sha256,
        engine=engine_config.model_dump(mode="json"),
        fingerprint=engine_config.fingerprint(),
        computations=computations,
        started_at=clock(),
        started_by=owner,
    )
