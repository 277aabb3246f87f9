"""Alignment: the similarity transform that brings a face's landmarks to a recogniser's template."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# OpenCV 4.x and 5, modules/objdetect/src/face_recognize.cpp, FaceRecognizerSF::alignCrop: in a 112 x 112 crop, the eye
# at the left of the picture, the other eye, the nose, the mouth's left corner, its right corner.
TEMPLATE = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
TEMPLATE_SIDE = 112


def similarity_transform(points: "NDArray[Any]", template: "NDArray[Any]") -> "NDArray[np.float64]":
    """The (2, 3) matrix of rotation, scale and shift, without reflection, that fits (n, 2) points to a template best.

    Least squares in closed form: with points as complex numbers the map is z -> a z + b, and
    a = sum(conj(p) q) / sum(|p|^2) over points centred on their means. Equal to Umeyama's (1991) for two dimensions.
    Raises ValueError when the points coincide.
    """
    import numpy as np

    source = points[:, 0] + 1j * points[:, 1]
    target = template[:, 0] + 1j * template[:, 1]
    centred = source - source.mean()
    spread = np.sum(np.abs(centred) ** 2)
    if spread < 1e-9:
        raise ValueError("The landmarks lie in one point, so they say nothing about the face's size.")
    a = np.sum(np.conj(centred) * (target - target.mean())) / spread
    b = target.mean() - a * source.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def align(
    image: "NDArray[np.uint8]", points: "NDArray[Any]", size: tuple[int, int], margin: float = 0.0
) -> "NDArray[np.uint8]":
    """A (height, width, 3) crop in which the landmarks lie where the template has them.

    `points`: (5, 2) or (2, 2, the eyes), in pixels, in the template's order. `size`: (width, height); the template is
    scaled to the shorter side and centred. `margin`: what is shown around the template, as a share of the crop's side.
    """
    import cv2
    import numpy as np

    scale = min(size) / TEMPLATE_SIDE * (1 - 2 * margin)
    offset = (np.array(size) - TEMPLATE_SIDE * scale) / 2
    template = np.array(TEMPLATE[: len(points)]) * scale + offset
    matrix = similarity_transform(points, template)
    # Black around the picture for recognisers, as OpenCV has it; paler for people.
    border = (240, 236, 232) if margin else (0, 0, 0)
    crop: NDArray[np.uint8] = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderValue=border)
    return crop
