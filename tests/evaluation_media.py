"""A small list of labelled pairs for tests: frames of the sample video's man, and pictures of the astronaut."""

import csv
from itertools import combinations, product
from pathlib import Path

import av
from PIL import Image, ImageEnhance

from deployments.demo_media import samples
from tasks.settings import Settings

MAN = ("Adam_Jones_1.png", "Adam_Jones_2.png", "Adam_Jones_3.png")
WOMAN = ("Berta_Smith_1.png", "Berta_Smith_2.jpg")
NOBODY = "Clara_Nobody.png"


def write_pairs(folder: Path, settings: Settings) -> tuple[Path, Path]:
    """A CSV file of all pairs of six pictures, one of them without a face, and the folder of the pictures."""
    images = folder / "images"
    images.mkdir(parents=True)
    video, photograph = samples(settings)
    with av.open(str(video)) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]  # type: ignore[no-untyped-call]
    for name, index in zip(MAN, (0, 50, 100), strict=True):
        frames[index].resize((640, 480)).save(images / name)
    with Image.open(photograph) as picture:
        woman = picture.convert("RGB")
    woman.save(images / WOMAN[0])
    ImageEnhance.Brightness(woman.crop((100, 0, 400, 300))).enhance(0.8).save(images / WOMAN[1])
    Image.new("RGB", (300, 300), "grey").save(images / NOBODY)
    genuine = [*combinations(MAN, 2), WOMAN, (MAN[0], NOBODY)]
    with (folder / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["reference", "probe", "same_person"])
        writer.writerows([*pair, 1] for pair in genuine)
        writer.writerows([*pair, 0] for pair in product(MAN, WOMAN))
    return folder / "pairs.csv", images
