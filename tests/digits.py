"""scikit-learn's handwritten digits, as the files that people have: real images without a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def write_digits(folder: Path, count: int, size: tuple[int, int], *, by_class: bool = False) -> list[Path]:
    """PNGs of the first `count` digits, on request in a folder for each class; their paths in order."""
    digits = load_digits()
    for number in range(count):
        place = folder / str(digits.target[number]) if by_class else folder
        place.mkdir(parents=True, exist_ok=True)
        pixels = (digits.images[number] * 15).astype(np.uint8)
        Image.fromarray(pixels).resize(size).save(place / f"{number:03}.png")
    return sorted(folder.rglob("*.png"))
