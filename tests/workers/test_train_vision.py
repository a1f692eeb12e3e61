"""The vision worker on scikit-learn's digits: the weights of a plain torch loop, with and without `kill -9`."""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import transformers
from PIL import Image

from plain_runs.vision import SETTINGS, TIMM, VIT, trained
from streaming.twins import assert_equal
from superpipe_cluster.errors import BadInput
from superpipe_cluster.labelled_images import open_images
from superpipe_cluster.spec import ImagesSection
from worker_runs import Run


def job(model: dict[str, Any], images: Path, **train: Any) -> dict[str, Any]:
    return {
        "kind": "vision", "name": "v", "model": {"config": model},
        "images": {"train": str(images), "eval_share": 0.2},
        "train": {**SETTINGS, "checkpoint_every": 5, **train}, "streaming": {"k": 3},
    }  # fmt: skip


@pytest.mark.usefixtures("with_torchvision")
@pytest.mark.parametrize(
    ("config", "settings", "budget"),
    [
        (VIT, {"augment": "crop", "weight_decay": 0.05}, 2_900_000),
        (TIMM, {"augment": "none", "precision": "bfloat16"}, 2_400_000),
    ],
    ids=["transformers", "timm"],
)
def test_the_weights_are_those_of_a_plain_loop(
    config: dict[str, Any],
    settings: dict[str, Any],
    budget: int,
    digits: Path,
    tmp_path: Path,
) -> None:
    if config is TIMM:
        pytest.importorskip("timm", reason="make test-vision")
    run = Run(tmp_path / "job", job(config, digits, **settings), budget)
    run.kill_at(run.start(), 7)
    run.succeed()
    assert "resumed at step 5, attempt 2" in run.log()
    assert run.progress["loads"] > run.progress["units"]
    assert run.progress["peak_bytes"] <= budget
    assert run.progress["peak_units"] <= run.progress["k"] < run.progress["units"]

    model, right = trained(config, digits, settings)
    made = transformers.AutoModelForImageClassification.from_pretrained(run.output)
    assert_equal(made.state_dict(), model.state_dict())
    assert made.config.id2label[3] == "3"
    scores = re.findall(r"top-1 ([\d.]+)", run.log())
    assert float(scores[-1]) == pytest.approx(right, abs=1e-4)


def test_parquet_has_images_and_names_of_classes(tmp_path: Path) -> None:
    def png(shade: int) -> bytes:
        out = BytesIO()
        Image.new("RGB", (4, 4), (shade, 0, 0)).save(out, "png")
        return out.getvalue()

    path = tmp_path / "a.parquet"
    rows = {"picture": [png(10), png(20), png(30)], "kind": ["cat", "ant", "cat"]}
    parquet.write_table(pa.table(rows), path)
    section = ImagesSection(train=(str(path),), eval_share=0.0, image_field="picture", label_field="kind")
    images, unseen = open_images(section, 0)
    assert (images.classes, images.labels, len(unseen)) == (("ant", "cat"), (1, 0, 1), 0)
    assert [images.read(place).getpixel((0, 0)) for place in range(3)] == [(10, 0, 0), (20, 0, 0), (30, 0, 0)]
    with pytest.raises(BadInput, match=r"images\.label_field: there is no column 'label' in .*a\.parquet"):
        open_images(section.model_copy(update={"label_field": "label"}), 0)


def test_bad_images_are_named(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"images\.train: all \d+ images are of one class"):
        open_images(ImagesSection(train=(str(digits / "3"),)), 0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_text("no image")
    with pytest.raises(BadInput, match=r"images\.train: .*a/x\.png is no image"):
        open_images(ImagesSection(train=(str(tmp_path),)), 0)
    with pytest.raises(BadInput, match=r"images\.eval: .*a/x\.png is no image"):
        open_images(ImagesSection(train=(str(digits),), eval=(str(tmp_path),)), 0)
    (tmp_path / "a" / "x.png").unlink()
    (tmp_path / "b" / "x.png").unlink()
    (tmp_path / "b" / "notes.txt").touch()
    with pytest.raises(BadInput, match=r"images\.train: no images among the 1 files"):
        open_images(ImagesSection(train=(str(tmp_path),)), 0)


@pytest.mark.usefixtures("with_torchvision")
def test_too_few_images_are_said_before_training(digits: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "job", job(VIT, digits, batch_size=500), 64 << 20)
    end = run.finish(run.start())
    assert end.reason == "bad_input"
    assert end.message is not None
    assert "are too few for a step of 1000" in end.message
