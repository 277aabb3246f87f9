"""What clients put around a file: the refusal names it."""

import base64
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.errors import MediaRefused
from tasks.media import check_id_image, check_selfie_video
from tasks.settings import Settings
from tests.media_fixtures import write_video
from tests.unit.test_media_images import encoded, photograph

SETTINGS = Settings()
FORM = b'--a\r\nContent-Disposition: form-data; name="file"\r\n\r\n%b\r\n--a--\r\n'
WRAPPINGS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "base64": (base64.b64encode, "base64"),
    "base64-lines": (lambda content: b"\r\n" + base64.encodebytes(content), "base64"),
    "data-url": (lambda content: b"data:image/jpeg;base64," + base64.b64encode(content), "data URL"),
    "form": (lambda content: FORM % content, "form"),
    "json": (lambda content: b'{"file": "%b"}' % base64.b64encode(content), "JSON"),
    "json-string": (lambda content: b'"%b"' % base64.b64encode(content), "JSON"),
    "byte-order-mark": (lambda content: b"\xef\xbb\xbf" + base64.b64encode(content), "base64"),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "mp4", "webm"])
def test_a_refusal_names_what_is_around_the_file(tmp_path: Path, kind: str, wrapping: str) -> None:
    path, (wrap, word) = tmp_path / "file", WRAPPINGS[wrapping]
    if kind in {"mp4", "webm"}:
        codec = "libx264" if kind == "mp4" else "libvpx"
        content, check = (
            write_video(tmp_path / f"selfie.{kind}", frames=3, codec=codec).read_bytes(),
            check_selfie_video,
        )
    else:
        content, check = encoded(photograph(), kind), check_id_image
    path.write_bytes(wrap(content))
    with pytest.raises(MediaRefused, match=word):
        check(path, SETTINGS)
