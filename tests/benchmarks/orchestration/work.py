"""What a user of Celery or Temporal writes beside tasks or workflows: tables, a comparison, one stored decision."""

import os
import time
from collections.abc import Callable
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import psycopg

SCHEMA = """
CREATE TABLE uploads (session_id text, kind text, path text NOT NULL, PRIMARY KEY (session_id, kind));
CREATE TABLE computations (session_id text NOT NULL);
CREATE TABLE decisions (session_id text PRIMARY KEY, similarity double precision);
"""
DATABASE = "BENCHMARK_DATABASE"
COMPARISON = "BENCHMARK_COMPARISON"
KINDS = ("id_image", "selfie_video")


class Kind(StrEnum):
    """What a comparison is."""

    NOTHING = "nothing"
    TWO_SECONDS = "two seconds"
    LOOP = "DeepFace loop"
    ENGINE = "kycflow's engine"


@cache
def connection() -> "psycopg.Connection[Any]":
    """One a process."""
    return psycopg.connect(os.environ[DATABASE], autocommit=True)


@cache
def comparison() -> Callable[[Path, Path], float | None]:
    """What the environment asks for, with its models loaded: similarity of a card and a video."""
    match kind := Kind(os.environ[COMPARISON]):
        case Kind.LOOP:
            from tests.benchmarks.naive import deepface_loop

            loop = deepface_loop()
            return lambda card, video: float(loop(card, video)["similarity"])
        case Kind.ENGINE:
            from tasks.faces.engine import load_engine
            from tasks.faces.models import engine_config
            from tasks.settings import Settings

            settings = Settings()
            engine = load_engine(engine_config(settings), settings)
            return lambda card, video: engine.compare(card, video, settings).comparison.similarity
    return lambda card, video: idle(kind)


def idle(kind: Kind) -> float:
    """A comparison that only takes its time."""
    if kind is Kind.TWO_SECONDS:
        time.sleep(2)
    return 1.0


def note_upload(session_id: str, kind: str, path: str) -> bool:
    """Whether both files are there."""
    with connection().transaction():  # one upload of a session at a time: only one of them finds both
        connection().execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (session_id,))
        connection().execute("INSERT INTO uploads VALUES (%s, %s, %s) ON CONFLICT DO NOTHING", (session_id, kind, path))
        return len(uploads(session_id)) == len(KINDS)


def uploads(session_id: str) -> dict[str, str]:
    """Path by kind."""
    return dict(connection().execute("SELECT kind, path FROM uploads WHERE session_id = %s", (session_id,)).fetchall())


def verify(session_id: str, card: str, video: str) -> None:
    """Compare and store the decision, once: safe to repeat."""
    if connection().execute("SELECT FROM decisions WHERE session_id = %s", (session_id,)).fetchone() is not None:
        return
    connection().execute("INSERT INTO computations VALUES (%s)", (session_id,))
    similarity = comparison()(Path(card), Path(video))
    connection().execute("INSERT INTO decisions VALUES (%s, %s) ON CONFLICT DO NOTHING", (session_id, similarity))
