"""Tracking: one person is followed through a video's frames. Pure."""

from dataclasses import dataclass, field

from tasks.faces.detection import Face, overlap, rivals

_SAME_PLACE = 0.1
"""Intersection over union from which a face continues the one before. Frames lie up to seconds apart, so a little is
enough; whether it is still the same person is told by the embeddings."""


@dataclass
class Follower:
    """Picks the person's face in frame after frame: the one at the last place, else the largest.

    `crowded` counts the frames in which another face was of like size: these take no part, so that a bystander never
    decides. `seen` counts the frames with a face.
    """

    seen: int = 0
    crowded: int = 0
    _last: Face | None = field(default=None, repr=False)

    def pick(self, faces: list[Face]) -> Face | None:
        """The person's face among a frame's, largest first; None when there is none, or not only one of its size."""
        if not faces:
            return None
        self.seen += 1
        last = self._last

        def same_place(face: Face) -> float:
            # A small face at the last place is somebody behind it.
            return 0.0 if last is None or face.area < last.area / 4 else overlap(face.box, last.box)

        here = [face for face in faces if same_place(face) >= _SAME_PLACE]
        person = max(here, key=same_place, default=faces[0])
        if rivals(person, faces):
            self.crowded += 1
            if here or last is None:
                self._last = person
            return None
        self._last = person
        return person

    @property
    def mostly_crowded(self) -> bool:
        """Whether the person was alone in fewer than half of the frames with a face."""
        return 2 * self.crowded > self.seen
