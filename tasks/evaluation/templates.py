"""Templates: what a pipeline made of each picture, kept in a SQLite file so that it is computed once.

Embeddings are biometric data: the file is for its owner only.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tasks.contracts import FaceQuality
from tasks.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILE = "templates.sqlite"

_TABLE = """
CREATE TABLE IF NOT EXISTS templates (
    pipeline TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    faces INTEGER NOT NULL,
    embeddings BLOB NOT NULL,
    failure TEXT,
    quality TEXT,
    crop BLOB,
    PRIMARY KEY (pipeline, sha256)
) STRICT
"""


@dataclass(frozen=True)
class Template:
    """What a pipeline made of a picture: (n, d) embeddings of unit length, one a face; or a failure, and why.

    `complaint`: the quality bound that the face does not keep. `crop`: the aligned face for people to look at, JPEG;
    only present while it is new.
    """

    embeddings: "NDArray[np.float64]"
    failure: str | None = None
    quality: FaceQuality | None = None
    crop: bytes | None = None
    complaint: str | None = None


class TemplateStore:
    """Templates by pipeline (a fingerprint of all that changes them) and the SHA-256 of the picture's bytes.

    Each is committed by itself, so a run that is killed goes on where it was. The folder is made for its owner only.
    Every method raises ConfigurationError when the file cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        with self._translated():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))  # SQLite gives its journal the same mode
            self._connection = sqlite3.connect(self._path, timeout=60, isolation_level=None)
        try:
            self._one(_TABLE)
        except ConfigurationError:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def get(self, pipeline: str, sha256: str) -> Template | None:
        """The template without its crop, or None when there is none yet."""
        import numpy as np

        row = self._one(
            "SELECT faces, embeddings, failure, quality FROM templates WHERE pipeline = ? AND sha256 = ?",
            pipeline,
            sha256,
        )
        if row is None:
            return None
        faces, embeddings, failure, quality = row
        return Template(
            np.frombuffer(embeddings, dtype="<f8").reshape(faces, -1 if faces else 0),
            failure,
            None if quality is None else FaceQuality.model_validate_json(quality),
        )

    def crop(self, pipeline: str, sha256: str) -> bytes | None:
        """The aligned face, JPEG."""
        row = self._one("SELECT crop FROM templates WHERE pipeline = ? AND sha256 = ?", pipeline, sha256)
        crop: bytes | None = None if row is None else row[0]
        return crop

    def put(self, pipeline: str, sha256: str, template: Template) -> None:
        """Keep a template; one that is there stays."""
        self._one(
            "INSERT OR IGNORE INTO templates VALUES (?, ?, ?, ?, ?, ?, ?)",
            pipeline,
            sha256,
            len(template.embeddings),
            template.embeddings.astype("<f8").tobytes(),
            template.failure,
            None if template.quality is None else template.quality.model_dump_json(),
            template.crop,
        )

    def _one(self, statement: str, *values: object) -> Any:
        with self._translated():
            return self._connection.execute(statement, values).fetchone()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as exc:
            raise ConfigurationError(
                f"{self._path} cannot be used: {exc}. Name another output folder, or delete the file to begin anew."
            ) from exc
