"""Hostile media: checks for the upload service, and the same decoders for the face engine.

What a file is, its bytes say, never its name. Needs Pillow and PyAV only.
"""

from tasks.media.images import check_id_image, read_id_image
from tasks.media.sampling import VideoSample, sample_frames
from tasks.media.video_check import check_selfie_video

__all__ = ["VideoSample", "check_id_image", "check_selfie_video", "read_id_image", "sample_frames"]
