"""The list of labelled pairs: a CSV file with the header `reference,probe,same_person`."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tasks.errors import ConfigurationError

COLUMNS = ("reference", "probe", "same_person")


class Pair(NamedTuple):
    """Two pictures, named as they lie in the folder, and whether they show the same person."""

    reference: str
    probe: str
    genuine: bool


def read_pairs(path: Path, images: Path) -> list[Pair]:
    """All pairs of the file, in its order. `images`: the folder in which the pictures lie.

    Raises ConfigurationError, which names the line but no picture: names of files may be names of people, and the
    message may be shown on a server.
    """
    if not images.is_dir():
        raise ConfigurationError(f"{images} is no folder. Name the folder that holds the pictures.")
    pairs: list[Pair] = []
    folder, checked = images.resolve(), set[str]()
    labels: dict[frozenset[str], tuple[bool, int]] = {}
    for line, row in _rows(path):
        where = f"{path}, line {line}"
        pair = Pair(row["reference"], row["probe"], _label(row["same_person"], where))
        for column, name in zip(COLUMNS, pair[:2], strict=False):
            if name not in checked:
                _check_picture(name, folder, f"{where}, column {column}")
                checked.add(name)
        if pair.reference == pair.probe:
            raise ConfigurationError(f"{where} compares a picture with itself, which says nothing. Take it out.")
        label, first = labels.setdefault(frozenset(pair[:2]), (pair.genuine, line))
        if label is not pair.genuine:
            raise ConfigurationError(f"{where} has the pair of line {first} with another same_person. Correct one.")
        pairs.append(pair)
    for genuine, kind in ((True, "genuine pair (same_person 1)"), (False, "impostor pair (same_person 0)")):
        if not any(pair.genuine is genuine for pair in pairs):
            raise ConfigurationError(f"{path} has no {kind}. Error rates need both kinds: add some.")
    return pairs


def repeated(pairs: Sequence[Pair]) -> int:
    """How many pairs are in the list already, in this order or the other one: they are no further evidence."""
    return len(pairs) - len({frozenset(pair[:2]) for pair in pairs})


def pictures(pairs: Sequence[Pair]) -> list[str]:
    """The names of all pictures, each once, in the order of their appearance."""
    return list(dict.fromkeys(name for pair in pairs for name in pair[:2]))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers, and cells by column. The line is that in which a row ends."""
    if path.exists() and not path.is_file():  # a pipe or a device would be read without end
        raise ConfigurationError(f"{path} is not a file. Name a CSV file of pairs.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or [])]
            if missing:
                raise ConfigurationError(
                    f"{path} has no column {' and no column '.join(missing)}. "
                    f"Its first line must be {','.join(COLUMNS)}."
                )
            for row in reader:
                if None in row or None in row.values():
                    raise ConfigurationError(
                        f"{path}, line {reader.line_num} has not as many cells as line 1. Quote names that have commas."
                    )
                yield reader.line_num, {column: row[column].strip() for column in COLUMNS}
    except OSError as exc:
        raise ConfigurationError(f"{path} cannot be read: {exc.strerror}. Name a CSV file of pairs.") from exc
    except (UnicodeDecodeError, csv.Error) as exc:
        raise ConfigurationError(f"{path} is no CSV file in UTF-8: {exc}. Export it again.") from exc


def _label(cell: str, where: str) -> bool:
    if cell not in {"0", "1"}:
        raise ConfigurationError(f"{where}: same_person is neither 1 (same person) nor 0 (different people).")
    return cell == "1"


def _check_picture(name: str, folder: Path, where: str) -> None:
    if not name:
        raise ConfigurationError(f"{where} is empty. Name a picture in the folder.")
    try:
        picture = (folder / name).resolve()
    except ValueError as exc:  # a NUL
        raise ConfigurationError(f"{where} is no name of a file.") from exc
    if not picture.is_relative_to(folder):
        raise ConfigurationError(f"{where} leads out of the folder of pictures. Name a picture inside it.")
    if not picture.is_file():
        raise ConfigurationError(f"{where}: that picture is not in the folder. Add it, or take the line out.")
