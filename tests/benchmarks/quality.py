"""`make bench-quality PAIRS=… IMAGES=…`: what blur, small size and darkness cost, on labelled pairs of pictures.

Of each genuine pair one picture is spoilt and compared with the other as it is. The defaults of the quality bounds
(`tasks/judgement.py`) come from this table.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tasks.evaluation.pairs import read_pairs
from tasks.faces.engine import Enrolled, load_engine
from tasks.faces.models import engine_config
from tasks.judgement import thresholds_for
from tasks.settings import Settings

Picture = NDArray[np.uint8]


def blurred(sigma: float) -> Callable[[Picture], Picture]:
    return lambda picture: np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma))


def smaller(factor: float) -> Callable[[Picture], Picture]:
    return lambda picture: np.asarray(cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA))


def darker(factor: float) -> Callable[[Picture], Picture]:
    """With the noise that a camera adds in the dark."""
    noise = np.random.default_rng(1)
    return lambda picture: np.clip(picture * factor + noise.normal(0, 2, picture.shape), 0, 255).astype(np.uint8)


SPOILT: dict[str, Callable[[Picture], Picture]] = {
    "as it is": lambda picture: picture,
    **{f"blurred, sigma {sigma} px": blurred(sigma) for sigma in (1, 2, 3, 4)},
    **{f"scaled by {factor}": smaller(factor) for factor in (0.6, 0.4, 0.3, 0.25)},
    **{f"darkened to {factor:.0%}": darker(factor) for factor in (0.5, 0.3, 0.2, 0.1)},
}


def main(pairs_csv: Path, images: Path) -> None:
    settings = Settings()
    engine = load_engine(engine_config(settings), settings)
    match = thresholds_for(settings).match
    pairs = [pair for pair in read_pairs(pairs_csv, images) if pair.genuine]
    names = sorted({name for pair in pairs for name in (pair.reference, pair.probe)})
    plain = {name: engine.enrol(images / name, settings, in_the_middle=True) for name in names}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for what, spoil in SPOILT.items():
            found: dict[str, Enrolled] = {}
            for name in names:
                cv2.imwrite(f"{folder}/spoilt.png", spoil(np.asarray(cv2.imread(str(images / name)))))
                found[name] = engine.enrol(Path(folder, "spoilt.png"), settings, in_the_middle=True)
            scores = [
                float(one @ other)
                for pair in pairs
                if (one := plain[pair.reference].embedding) is not None
                and (other := found[pair.probe].embedding) is not None
            ]
            seen = [each.quality for each in found.values() if each.quality is not None]
            rows.append(
                {
                    "spoilt": what,
                    "lost": len(names) - len(seen),
                    "mean": float(np.mean(scores)),
                    "fnmr": float(np.mean(np.array(scores) < match)),
                    **{
                        measure: float(np.median([getattr(quality, measure) for quality in seen]))
                        for measure in ("sharpness", "eye_distance", "brightness", "contrast")
                    },
                }
            )
    (settings.state_dir.absolute() / "bench").mkdir(parents=True, exist_ok=True)
    (settings.state_dir.absolute() / "bench" / "quality.json").write_text(json.dumps(rows, indent=2) + "\n")
    table = Table("One picture of each pair", "No face", "Mean score", f"FNMR at {match:g}", box=None)
    for column in ("Sharpness", "Eyes, px", "Brightness", "Contrast"):
        table.add_column(column)
    for row in rows:
        table.add_row(
            *(row["spoilt"], str(row["lost"]), f"{row['mean']:.3f}", f"{row['fnmr']:.1%}", f"{row['sharpness']:.3f}"),
            *(f"{row['eye_distance']:.1f}", f"{row['brightness']:.3f}", f"{row['contrast']:.3f}"),
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
