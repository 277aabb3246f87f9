"""The list of pairs: read as it stands, or refused with the line and what to do."""

from pathlib import Path

import pytest

from tasks.errors import ConfigurationError
from tasks.evaluation.pairs import Pair, pictures, read_pairs, repeated

HEAD = "reference,probe,same_person\n"
NAMES = ("a.jpg", "b.jpg", "c, d.jpg", "Zoë.jpg")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of files, and one beside it."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in NAMES:
        (folder / name).touch()
    (tmp_path / "outside.jpg").touch()
    return folder


def listed(images: Path, text: str | bytes) -> Path:
    path = images.parent / "pairs.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_pairs_are_read_in_order_whatever_the_order_of_columns(images: Path) -> None:
    text = '\ufeffprobe,note,same_person,reference\nb.jpg,x,1,a.jpg\n\n"c, d.jpg",y, 0 ,Zoë.jpg\n'
    pairs = read_pairs(listed(images, text), images)
    assert pairs == [Pair("a.jpg", "b.jpg", True), Pair("Zoë.jpg", "c, d.jpg", False)]
    assert pictures(pairs) == ["a.jpg", "b.jpg", "Zoë.jpg", "c, d.jpg"]


def test_repeated_pairs_are_read_and_counted(images: Path) -> None:
    text = f"{HEAD}a.jpg,b.jpg,1\nb.jpg,a.jpg,1\na.jpg,b.jpg,1\na.jpg,Zoë.jpg,0\n"
    pairs = read_pairs(listed(images, text), images)
    assert (len(pairs), repeated(pairs)) == (4, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column reference and no column probe and no column same_person"),
        ("reference,probe\na.jpg,b.jpg\n", "has no column same_person. Its first line must be"),
        (HEAD, "has no genuine pair"),
        (f"{HEAD}a.jpg,b.jpg,1\n", "has no impostor pair"),
        (f"{HEAD}a.jpg,b.jpg,0\n", "has no genuine pair"),
        (f"{HEAD}a.jpg,b.jpg,1\na.jpg,b.jpg,yes\n", "line 3: same_person is neither 1"),
        (f"{HEAD}a.jpg,b.jpg\n", "line 2 has not as many cells"),
        (f"{HEAD}c, d.jpg,b.jpg,1\n", "line 2 has not as many cells"),
        (f"{HEAD}a.jpg,gone.jpg,1\n", "line 2, column probe: that picture is not in the folder"),
        (f"{HEAD}a.jpg,../outside.jpg,1\n", "line 2, column probe leads out of the folder"),
        (f"{HEAD}/etc/passwd,a.jpg,1\n", "line 2, column reference leads out of the folder"),
        (f"{HEAD}link.jpg,a.jpg,1\n", "line 2, column reference leads out of the folder"),
        (f"{HEAD},a.jpg,1\n", "line 2, column reference is empty"),
        (f"{HEAD}a\0.jpg,a.jpg,1\n", "line 2, column reference is no name"),
        (f"{HEAD}a.jpg,a.jpg,1\n", "line 2 compares a picture with itself"),
        (f"{HEAD}a.jpg,b.jpg,1\nb.jpg,a.jpg,0\n", "line 3 has the pair of line 2 with another same_person"),
        (f'{HEAD}"a.jpg"x,b.jpg,1\n', "is no CSV file in UTF-8"),
        (HEAD.encode() + b"\xff.jpg,b.jpg,1\n", "is no CSV file in UTF-8"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused_with_its_line(text: str | bytes, message: str, images: Path) -> None:
    (images / "link.jpg").symlink_to(images.parent / "outside.jpg")
    with pytest.raises(ConfigurationError, match=message) as caught:
        read_pairs(listed(images, text), images)
    # Names of pictures may be names of people, and a message may reach a server.
    assert "gone.jpg" not in str(caught.value)
    assert "a.jpg" not in str(caught.value)


def test_files_that_are_not_there(images: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        read_pairs(images.parent / "none.csv", images)
    with pytest.raises(ConfigurationError, match="is no folder"):
        read_pairs(listed(images, HEAD), images / "none")
