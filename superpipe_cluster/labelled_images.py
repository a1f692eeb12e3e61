"""Images and their classes: from a folder for each class, or from Parquet files.

Owns which images there are, what their classes are and which of them are for evaluation. `datasets` reads Parquet,
Pillow images; how they are changed for the model is the worker program's.
"""

from __future__ import annotations

import colorsys
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superpipe_cluster.errors import BadInput, FileMissing, first_line
from superpipe_cluster.spec import ImagesSection, files

if TYPE_CHECKING:
    from PIL.Image import Image

#: Images of `generated:`, and their classes.
_GENERATED, _COLOURS = 600, 10


@dataclass(frozen=True)
class LabelledImages:
    """Some images.

    Attributes:
        classes: the names of all classes.
        labels: the class of each image, as its place in `classes`.
        read: an RGB image by its place.
    """

    classes: tuple[str, ...]
    labels: tuple[int, ...]
    read: Callable[[int], Image]

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.labels)

    def chosen(self, places: Sequence[int]) -> LabelledImages:
        """Those at some places."""
        return replace(
            self,
            labels=tuple(self.labels[place] for place in places),
            read=lambda number: self.read(places[number]),
        )


def open_images(section: ImagesSection, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """The images to train on, and those to evaluate on.

    Args:
        section: the job's images section.
        seed: chooses which images are for evaluation, where no others are named.

    Raises:
        FileMissing: a file cannot be read as what it should be.
        BadInput: there are no images, fewer than two classes, or a class to evaluate on that is not trained.
    """
    train = _open(section.train, section, "images.train")
    if len(train.classes) < 2:
        raise BadInput(
            f"images.train: all {len(train)} images are of one class",
            hint="put the images of each class into a folder of its own, and name the folder above them",
        )
    if section.eval is not None:
        other = _open(section.eval, section, "images.eval")
        unknown = [name for name in other.classes if name not in train.classes]
        if unknown:
            raise BadInput(
                f"images.eval: the class {unknown[0]!r} is not among those to train on",
                hint=f"the classes are {', '.join(train.classes[:20])}",
            )
        labels = tuple(train.classes.index(other.classes[label]) for label in other.labels)
        return train, replace(other, classes=train.classes, labels=labels)
    order = list(range(len(train)))
    random.Random(seed).shuffle(order)
    kept = len(order) - round(section.eval_share * len(order))
    return train.chosen(sorted(order[:kept])), train.chosen(sorted(order[kept:]))


def _open(patterns: Sequence[str], section: ImagesSection, name: str) -> LabelledImages:
    if files.GENERATED in patterns:
        return _generated()
    paths = [path for pattern in patterns for path in files.expand(pattern)]
    tables = [path for path in paths if path.suffix.lower() == ".parquet"]
    if tables:
        return _of_tables(tables, section, name)
    return _of_files(paths, name)


def _of_files(paths: Sequence[Path], name: str) -> LabelledImages:
    """The class of an image is the name of its folder."""
    from PIL import Image as pillow

    known = set(pillow.registered_extensions())
    images = [path for path in paths if path.suffix.lower() in known]
    if not images:
        raise BadInput(
            f"{name}: no images among the {len(paths)} files",
            hint="name a folder with a folder for each class",
        )

    def read(number: int) -> Image:
        try:
            with pillow.open(images[number]) as image:
                return image.convert("RGB")
        except (OSError, ValueError) as error:
            raise FileMissing(
                f"{name}: cannot read {images[number]}: {first_line(error)}",
                hint="remove it, or mend it: it must be of a format that Pillow reads",
            ) from error

    for path in images:
        try:
            pillow.open(path).close()  # reads the header
        except (OSError, ValueError) as error:
            raise FileMissing(f"{name}: {path} is no image", hint="remove it, or mend it") from error
    classes = sorted({path.parent.name for path in images})
    places = {one: place for place, one in enumerate(classes)}
    return LabelledImages(tuple(classes), tuple(places[path.parent.name] for path in images), read)


def _of_tables(paths: Sequence[Path], section: ImagesSection, name: str) -> LabelledImages:
    try:
        import datasets
    except ImportError as error:
        raise BadInput(
            "Parquet files are read with datasets, which is not installed here",
            hint='pip install "superpipe_cluster[vision]"',
        ) from error
    datasets.disable_progress_bars()
    try:
        table: Any = datasets.load_dataset("parquet", data_files=[str(path) for path in paths], split="train")
    except Exception as error:
        raise FileMissing(
            f"{name}: cannot read {paths[0]}: {first_line(error.__cause__ or error)}",
            hint="name .parquet files with the same columns",
        ) from error
    for field in ("image_field", "label_field"):
        column = getattr(section, field)
        if column not in table.column_names:
            raise BadInput(
                f"images.{field}: there is no column {column!r} in {paths[0]}",
                hint=f"its columns are {', '.join(table.column_names)}",
            )
    given = table[section.label_field][:]
    named = getattr(table.features[section.label_field], "names", None)
    if any(one is None for one in given):
        raise BadInput(
            f"images.label_field: row {given.index(None)} has no class", hint="leave such rows out"
        )
    values = list(range(len(named))) if named else sorted(set(given))
    places = {one: place for place, one in enumerate(values)}
    pictures = table.cast_column(section.image_field, datasets.Image())
    classes = tuple(named) if named else tuple(map(str, values))
    return LabelledImages(
        classes,
        tuple(places[one] for one in given),
        lambda number: pictures[number][section.image_field].convert("RGB"),
    )


def _generated() -> LabelledImages:
    """Noise, and a colour for each class: to try things out where there are no files."""

    def read(number: int) -> Image:
        from PIL import Image as pillow

        tint = colorsys.hsv_to_rgb(number % _COLOURS / _COLOURS, 0.6, 160)
        noise = random.Random(number).randbytes(3 * 32 * 32)
        pixels = bytes(int(tint[at % 3] + byte * 0.35) for at, byte in enumerate(noise))
        return pillow.frombytes("RGB", (32, 32), pixels)

    classes = tuple(f"colour-{number}" for number in range(_COLOURS))
    return LabelledImages(classes, tuple(number % _COLOURS for number in range(_GENERATED)), read)
