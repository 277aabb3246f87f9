"""Hostile media: checks for the upload service, and the same decoders for the face engine.

What a file is, its bytes say, never its name. Needs Pillow and PyAV only.
"""

from tasks.media.images import check_id_image, read_id_image
from tasks.media.videos import check_selfie_video, sample_frames

__all__ = ["check_id_image", "check_selfie_video", "read_id_image", "sample_frames"]
