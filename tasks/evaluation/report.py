"""An evaluation's report for people: one table, for the terminal, the file and the Prefect UI alike."""

from typing import NamedTuple

from tasks.evaluation.results import Evaluation, OperatingPoint, PipelineResult, Rate


class Row(NamedTuple):
    """A line of the table: what, and one cell for each pipeline."""

    what: str
    cells: tuple[str, ...]


def pipelines(evaluation: Evaluation) -> tuple[PipelineResult, ...]:
    """kycflow's own, and the baseline where it was run."""
    return (evaluation.kycflow,) if evaluation.deepface is None else (evaluation.kycflow, evaluation.deepface)


def rows(evaluation: Evaluation) -> list[Row]:
    """The table's lines. Rates are shown with their 95 % intervals."""
    shown = pipelines(evaluation)
    failures = dict.fromkeys(reason for each in shown for reason in each.failures)
    complaints = dict.fromkeys(reason for each in shown for reason in each.complaints)
    table = [
        Row("Failures to acquire, pictures", tuple(_failures(each, evaluation.pictures) for each in shown)),
        *(Row(f"  {reason}", tuple(str(each.failures.get(reason, 0)) for each in shown)) for reason in failures),
        Row("Outside of the quality bounds, scored", tuple(str(sum(each.complaints.values())) for each in shown)),
        *(Row(f"  {reason}", tuple(str(each.complaints.get(reason, 0)) for each in shown)) for reason in complaints),
        Row("Genuine pairs scored", tuple(_scored(each.genuine, each.genuine_unscored) for each in shown)),
        Row("Impostor pairs scored", tuple(_scored(each.impostor, each.impostor_unscored) for each in shown)),
        Row("Genuine mean, deviation", tuple(_spread(each.genuine_spread) for each in shown)),
        Row("Impostor mean, deviation", tuple(_spread(each.impostor_spread) for each in shown)),
        Row("Best accuracy", tuple(_rate(each.accuracy) for each in shown)),
        Row("  at threshold", tuple(f"{each.accuracy_threshold:.4f}" for each in shown)),
        Row("Equal error rate", tuple(f"{each.eer:.2%} at {each.eer_threshold:.4f}" for each in shown)),
        Row("Area under the ROC curve", tuple(f"{each.auc:.5f}" for each in shown)),
    ]
    for name in dict.fromkeys(point.name for each in shown for point in each.points):
        points = [each.point(name) for each in shown]
        table += [
            Row(f"At {name}: threshold", tuple("" if p is None else _threshold(p) for p in points)),
            Row("  FMR", tuple("" if p is None else _rate(p.fmr) for p in points)),
            Row("  FNMR", tuple("" if p is None else _rate(p.fnmr) for p in points)),
            Row("  FRR, failures included", tuple("" if p is None else _rate(p.frr) for p in points)),
        ]
    return table


def remarks(evaluation: Evaluation) -> list[str]:
    """What has to be known to read the figures."""
    suggested = evaluation.suggested
    said = [
        f"Suggested threshold for an FMR of at most {evaluation.wanted_fmr:g}: {suggested.threshold:.4f}. "
        f"FNMR there: {_rate(suggested.fnmr)}."
    ]
    for point in evaluation.kycflow.points:
        if not point.supported:
            said.append(
                f"Too few impostor pairs for an FMR of {point.wanted_fmr:g}: {point.pairs_needed} are needed (rule of "
                f"3), {point.fmr.of} were scored. Do not rely on the threshold {point.threshold:.4f}."
            )
    said.append(
        "Intervals are Wilson's, 95 %, for independent pairs. Pairs that share pictures or people are not: the true "
        "intervals are wider."
    )
    if evaluation.deepface is not None and (evaluation.kycflow.failures or evaluation.deepface.failures):
        said.append(
            "Pairs of a picture that a pipeline fails on are left out of its FMR and FNMR, so the columns are not of "
            "quite the same pairs. FRR counts all genuine pairs."
        )
    if evaluation.repeated:
        said.append(
            f"{evaluation.repeated} pairs repeat another, in either order. They are counted, and add no evidence."
        )
    return said


def markdown(evaluation: Evaluation) -> str:
    """The whole report, Markdown: aggregates only."""
    engine = evaluation.engine
    shown = pipelines(evaluation)
    header = Row("What", tuple(each.name for each in shown))
    table = [header, Row("---", tuple("---" for _ in shown)), *rows(evaluation)]
    lines = [
        "# Evaluation",
        f"{evaluation.pairs} pairs of {evaluation.pictures} pictures. {engine.recogniser} with {engine.detector}, "
        f"{engine.backend}, on {evaluation.device}; engine `{engine.fingerprint()[:12]}…`.",
        "\n".join(f"| {_indented(row.what)} | {' | '.join(row.cells)} |" for row in table),
        "\n".join(f"- {remark}" for remark in remarks(evaluation)),
    ]
    return "\n\n".join(lines) + "\n"


def _indented(what: str) -> str:
    return what.replace("  ", "&emsp;", 1) if what.startswith("  ") else what


def _failures(result: PipelineResult, pictures: int) -> str:
    return f"{sum(result.failures.values())} of {pictures}"


def _scored(scored: int, unscored: int) -> str:
    return f"{scored}" if unscored == 0 else f"{scored} of {scored + unscored}"


def _rate(rate: Rate) -> str:
    return f"{rate.value:.3%} ({rate.low * 100:.3f} to {rate.high * 100:.3f}), {rate.count}/{rate.of}"


def _spread(mean_and_deviation: tuple[float, float]) -> str:
    return "{:.3f}, {:.3f}".format(*mean_and_deviation)


def _threshold(point: OperatingPoint) -> str:
    return f"{point.threshold:.4f}" + ("" if point.supported else ", too few pairs")
