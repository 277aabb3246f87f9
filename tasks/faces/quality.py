"""Quality: what is measured on one face, and what it weighs among the frames of a video. Pure arithmetic on pixels."""

import math
from typing import TYPE_CHECKING

from tasks.contracts import FaceQuality

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Shape of a face that looks straight ahead, in distances between its eyes. Nose and mouth below the eyes: SFace's
# template (`alignment.TEMPLATE`). How far the nose's tip stands out before the eyes' and mouth's plane: about half the
# distance between the eyes (Farkas, Anthropometry of the Head and Face, 1994: 19 to 21 mm from the nose's wings, which
# lie about 12 mm before the eyes, at 63 mm between the pupils).
_NOSE_DOWN = (71.7366 - 51.5990) / 35.2372
_MOUTH_DOWN = (92.2848 - 51.5990) / 35.2372
_NOSE_OUT = 0.5

_TEMPLATE_EYES = 35.2372
"""Pixels between the eyes in SFace's crop: with fewer, the crop is enlarged and shows less than it could."""

_SHARP = 0.147
"""Sharpness from which a frame is not preferred for it: the median of 277 pictures of Labeled Faces in the Wild."""


def measure(
    points: "NDArray[np.float64]", confidence: float, crop: "NDArray[np.uint8]", pixels_of_file: float
) -> FaceQuality:
    """Measure a face.

    `points`: (5, 2) or (2, 2) landmarks in the order of `alignment.TEMPLATE`, in a picture of which one pixel is
    `pixels_of_file` of the file's own. `crop`: (112, 112, 3) RGB, aligned to that template.

    - Sharpness: standard deviation of the smoothed Laplacian over that of the luminance (after Pech-Pacheco and others,
      2000, who take the Laplacian's variance alone; the ratio does not change with light).
    - Brightness and contrast: mean and standard deviation of the luminance (ITU-R BT.601), as ISO/IEC 29794-5 has them.
    - Yaw and pitch: from where the nose's tip lies between eyes and mouth. Coarse: some 10 degrees off.
    """
    import cv2
    import numpy as np

    inner = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).astype(np.float32)[20:104, 20:92]  # brows to chin, without hair
    deviation = float(inner.std())
    # Smoothed first: noise, and the steps of 8 bits in a flat picture, are no sharpness.
    laplacian = float(cv2.Laplacian(cv2.GaussianBlur(inner, (0, 0), 1.0), cv2.CV_32F).std())
    yaw, pitch = _turned(points) if len(points) == 5 else (0.0, 0.0)
    across = points[1] - points[0]
    return FaceQuality(
        eye_distance=round(float(np.hypot(*across)) * pixels_of_file, 1),
        sharpness=round(laplacian / max(deviation, 1.0), 4),
        brightness=round(float(inner.mean()) / 255, 4),
        contrast=round(deviation / 255, 4),
        yaw=round(yaw, 1),
        pitch=round(pitch, 1),
        roll=round(math.degrees(math.atan2(across[1], across[0])), 1),
        confidence=round(confidence, 4),
    )


def weight(quality: FaceQuality) -> float:
    """What a frame's embedding counts, above 0 to 1: the product of what size, sharpness, light and pose are worth.

    Light as OFIQ scores it (ISO/IEC 29794-5's reference implementation, measure LuminanceMean): logistic, half at 0.2
    and 0.8. Pose likewise (HeadPose): the angle's squared cosine.
    """
    size = min(1.0, quality.eye_distance / _TEMPLATE_EYES)
    sharp = min(1.0, quality.sharpness / _SHARP)
    light = _logistic((quality.brightness - 0.2) / 0.05) * _logistic((0.8 - quality.brightness) / 0.05)
    pose = math.cos(math.radians(quality.yaw)) ** 2 * math.cos(math.radians(quality.pitch)) ** 2
    return max(1e-6, size * sharp * light * pose)


def figures(quality: FaceQuality) -> tuple[str, str, str, str, str, str, str]:
    """For people: eye distance, sharpness, brightness, contrast, yaw, pitch, confidence."""
    return (
        f"{quality.eye_distance:.0f} px",
        f"{quality.sharpness:.3f}",
        f"{quality.brightness:.2f}",
        f"{quality.contrast:.2f}",
        f"{round(quality.yaw)}°",
        f"{round(quality.pitch)}°",
        f"{quality.confidence:.2f}",
    )


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-max(-60.0, min(60.0, value))))


def _turned(points: "NDArray[np.float64]") -> tuple[float, float]:
    """(yaw, pitch) in degrees, of a head whose tilt is taken out first.

    Seen from afar, a head of width w turned by yaw shows its eyes w cos(yaw) apart and its nose moved aside by
    0.5 w sin(yaw), so the quotient of the two is 0.5 tan(yaw). Nodded by pitch, the nose lies at
    nose_down cos(pitch) + 0.5 sin(pitch) below the eyes and the mouth at mouth_down cos(pitch).
    """
    import numpy as np

    across = points[1] - points[0]
    width = float(np.hypot(*across))
    if width < 1e-6:
        return 0.0, 0.0
    right = across / width
    down = np.array([-right[1], right[0]])
    eyes, nose, mouth = (points[0] + points[1]) / 2, points[2], (points[3] + points[4]) / 2
    # The line from the eyes' middle to the mouth's is the head's own; the nose lies beside it when the head is turned.
    height = float((mouth - eyes) @ down)
    if height < 1e-6:
        return 0.0, 90.0
    nose_height = float((nose - eyes) @ down)
    aside = float((nose - eyes) @ right) - float((mouth - eyes) @ right) * nose_height / height
    yaw = math.degrees(math.atan2(aside / _NOSE_OUT, width))
    pitch = math.degrees(math.atan((nose_height / height * _MOUTH_DOWN - _NOSE_DOWN) / _NOSE_OUT))
    return max(-90.0, min(90.0, yaw)), pitch
