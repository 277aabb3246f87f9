"""All pictures' templates by one pipeline, and the scores of pairs of them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.downloads import sha256_of
from tasks.errors import ConfigurationError
from tasks.evaluation.pairs import Pair
from tasks.evaluation.templates import Template, TemplateStore

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Pipeline:
    """A way to make templates. `fingerprint`: of all that changes them. `make`: from a picture's file.

    `complaint`: which quality bound a face does not keep, or None. It is asked anew each time, and never stored.
    """

    name: str
    fingerprint: str
    make: Callable[[Path], Template]
    complaint: Callable[[Template], str | None] = lambda template: None


@dataclass(frozen=True)
class Gallery:
    """One pipeline's templates and the SHA-256 of the pictures' bytes, by the pictures' names."""

    pipeline: Pipeline
    templates: Mapping[str, Template]
    sha256: Mapping[str, str]
    computed: int
    """How many pictures were not known yet."""

    def failures(self) -> dict[str, int]:
        """Pictures without a template (failures to acquire), by reason, the most frequent first."""
        found = Counter(template.failure for template in self.templates.values() if template.failure is not None)
        return dict(found.most_common())

    def complaints(self) -> dict[str, int]:
        """Pictures outside of the quality bounds, which are scored all the same; the most frequent bound first."""
        found = Counter(template.complaint for template in self.templates.values() if template.complaint is not None)
        return dict(found.most_common())

    def scores(self, pairs: Sequence[Pair]) -> "NDArray[np.float64]":
        """(n,) largest cosines over all pairs of faces of each pair; NaN where a picture has no template."""
        import numpy as np

        scores = np.full(len(pairs), np.nan)
        for index, pair in enumerate(pairs):
            reference, probe = self.templates[pair.reference], self.templates[pair.probe]
            if reference.failure is None and probe.failure is None:
                scores[index] = (reference.embeddings @ probe.embeddings.T).max()
        return scores


def collect(
    names: Sequence[str],
    images: Path,
    pipeline: Pipeline,
    store: TemplateStore,
    progress: Callable[[str, int, int], None],
) -> Gallery:
    """Every picture's template: the stored one, or one that is made and stored now. Equal bytes are embedded once.

    `progress` is told the pipeline's name, how many pictures are done, and how many there are.
    Raises what `pipeline.make` raises; what was made before is kept.
    """
    templates: dict[str, Template] = {}
    sums: dict[str, str] = {}
    computed = 0
    for done, name in enumerate(names):
        progress(pipeline.name, done, len(names))
        try:
            sums[name] = sha256_of(images / name)
        except OSError as exc:  # its message and traceback would tell the picture's name
            raise ConfigurationError(
                f"Picture {done + 1} in the order of the list cannot be read: {exc.strerror}. Mend it and run again."
            ) from None
        template = store.get(pipeline.fingerprint, sums[name])
        if template is None:
            template = pipeline.make(images / name)
            store.put(pipeline.fingerprint, sums[name], template)
            template = replace(template, crop=None)  # thousands of them would fill the memory
            computed += 1
        templates[name] = replace(template, complaint=pipeline.complaint(template))
    progress(pipeline.name, len(names), len(names))
    return Gallery(pipeline, templates, sums, computed)
