"""An evaluation from its pairs to its report. Killed and started again, it goes on where it was."""

import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.contracts import Thresholds
from tasks.errors import ConfigurationError
from tasks.evaluation import deepface_verify, report
from tasks.evaluation.gallery import Gallery, collect
from tasks.evaluation.own import own_pipeline
from tasks.evaluation.pairs import Pair, pictures, read_pairs, repeated
from tasks.evaluation.results import Evaluation, Wanted
from tasks.evaluation.templates import TemplateStore
from tasks.faces.models import engine_config, measured
from tasks.judgement import thresholds_for
from tasks.settings import Settings

if TYPE_CHECKING:
    from tasks.evaluation.charts import Drawn
    from tasks.evaluation.rates import Floats
    from tasks.faces.engine import FaceEngine

USUAL_FMRS = (1e-3, 1e-4)
WORST = 8
"""Pairs of each kind in the picture of the worst."""

REPORT_FILES = (
    "report.md",
    "report.json",
    "roc.png",
    "det.png",
    "scores.png",
    "worst_pairs.png",
    "scores.csv",
    "failures.csv",
)
"""What an evaluation leaves behind for people, beside its templates."""

Progress = Callable[[str, int, int], None]
"""Is told of a pipeline's name, how many pictures are done, and how many there are."""


def require_libraries(settings: Settings) -> None:
    """Raises ConfigurationError when kycflow's extra `evaluate` is not installed."""
    missing = [name for name in ("matplotlib", "scipy", "sklearn") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(f"{', '.join(missing)} not installed. Install kycflow with its extra `evaluate`.")
    # matplotlib keeps a list of fonts; it belongs where everything is that kycflow writes.
    os.environ.setdefault("MPLCONFIGDIR", str(settings.state_dir.absolute() / "cache" / "matplotlib"))


def evaluate_files(
    pairs_csv: Path,
    images: Path,
    out: Path,
    settings: Settings,
    *,
    fmr: float = 1e-3,
    baseline: bool = False,
    progress: Progress = lambda name, done, of: None,
) -> Evaluation:
    """`evaluate` on a list of pairs (see `tasks.evaluation.pairs`) with the engine that the settings ask for.

    What is cheap to check is checked before the engine is loaded. Raises ConfigurationError, ComputeUnavailable.
    """
    if not 0 < fmr < 1:
        raise ConfigurationError(f"A false match rate of {fmr} cannot be asked for. Name one above 0 and below 1.")
    require_libraries(settings)
    pairs = read_pairs(pairs_csv, images)
    from tasks.faces.engine import load_engine

    engine = load_engine(engine_config(settings), settings)
    return evaluate(pairs, images, out, engine, settings, fmr=fmr, baseline=baseline, progress=progress)


def evaluate(
    pairs: Sequence[Pair],
    images: Path,
    out: Path,
    engine: "FaceEngine",
    settings: Settings,
    *,
    fmr: float = 1e-3,
    baseline: bool = False,
    progress: Progress = lambda name, done, of: None,
) -> Evaluation:
    """Score all pairs and write `REPORT_FILES` into `out`, a folder that is made for its owner only.

    `images`: the folder of the pictures. `fmr`: the false match rate to suggest a threshold for, above 0 and below 1.
    `baseline`: do the same with `DeepFace.verify`. Templates stay in `out`, so that running it again embeds only what
    is new. Raises ConfigurationError (`out` cannot be used, too few pictures have a face) and ComputeUnavailable.
    """
    begin = time.perf_counter()
    from tasks.evaluation import charts, worst
    from tasks.evaluation.report_files import failures_csv, scores_csv, write

    pipelines = [own_pipeline(engine, settings)]
    wanted = [_wanted(_thresholds(settings), fmr)]
    if baseline:
        pipelines.append(deepface_verify.verify_pipeline(engine.config))
        wanted.append([*wanted[0], deepface_verify.own_threshold(engine.config)])
    with TemplateStore(out) as store:
        names = pictures(pairs)
        galleries = [collect(names, images, pipeline, store, progress) for pipeline in pipelines]
        scores = [gallery.scores(pairs) for gallery in galleries]
        drawn = [_summarised(pairs, *each) for each in zip(galleries, scores, wanted, strict=True)]
        lowest, highest = worst.lowest_and_highest(pairs, scores[0], WORST)

        def shown(index: int) -> worst.Shown:
            sums = (galleries[0].sha256[name] for name in pairs[index][:2])
            return worst.Shown(float(scores[0][index]), *(store.crop(pipelines[0].fingerprint, each) for each in sums))

        worst_png = worst.worst_pairs([shown(index) for index in lowest], [shown(index) for index in highest])
    evaluation = Evaluation(
        pictures=len(names),
        pairs=len(pairs),
        repeated=repeated(pairs),
        engine=engine.config,
        device=engine.device,
        wanted_fmr=fmr,
        kycflow=drawn[0].result,
        deepface=drawn[1].result if baseline else None,
        embedded=sum(gallery.computed for gallery in galleries),
        seconds=time.perf_counter() - begin,
    )
    contents = (
        report.markdown(evaluation).encode(),
        f"{evaluation.model_dump_json(indent=2)}\n".encode(),
        charts.roc(drawn),
        charts.det(drawn),
        charts.histograms(drawn),
        worst_png,
        scores_csv(pairs, galleries, scores),
        failures_csv(galleries),
    )
    write(out, dict(zip(REPORT_FILES, contents, strict=True)))
    return evaluation


def _summarised(pairs: Sequence[Pair], gallery: Gallery, scores: "Floats", wanted: Sequence[Wanted]) -> "Drawn":
    import numpy as np

    from tasks.evaluation.charts import Drawn
    from tasks.evaluation.rates import summary

    labels = np.array([pair.genuine for pair in pairs])
    scored = ~np.isnan(scores)
    genuine, impostor = scores[labels & scored], scores[~labels & scored]
    name = gallery.pipeline.name
    for kind, found in (("genuine", genuine), ("impostor", impostor)):
        if found.size == 0:
            why = ", ".join(f"{reason} {count}" for reason, count in gallery.failures().items())
            raise ConfigurationError(
                f"{name} scored no {kind} pair: of {len(gallery.templates)} pictures failed {why}. Add others."
            )
    unscored = (int((labels & ~scored).sum()), int((~labels & ~scored).sum()))
    result = summary(
        name,
        genuine,
        impostor,
        failures=gallery.failures(),
        complaints=gallery.complaints(),
        unscored=unscored,
        wanted=wanted,
    )
    return Drawn(result, genuine, impostor)


def _wanted(thresholds: Thresholds | None, fmr: float) -> list[Wanted]:
    """The thresholds in use, then the wanted false match rate and the usual ones."""
    points = []
    if thresholds is not None:
        points += [Wanted("match threshold", threshold=thresholds.match)]
        points += [Wanted("review threshold", threshold=thresholds.review)]
    return points + [Wanted(f"FMR {rate:g}", fmr=rate) for rate in sorted({fmr, *USUAL_FMRS}, reverse=True)]


def _thresholds(settings: Settings) -> Thresholds | None:
    """Those in use; None when nobody has set or measured any for these models: then an evaluation finds them."""
    known = measured(settings.recogniser, settings.detector)
    if known is None and None in {settings.match_threshold, settings.review_threshold}:
        return None
    return thresholds_for(settings)
