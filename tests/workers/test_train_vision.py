"""The vision worker on scikit-learn's digits: the weights of a plain torch loop, with and without `kill -9`."""

from __future__ import annotations

import hashlib
import re
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
import transformers
from PIL import Image
from sklearn.datasets import load_digits

from streaming.twins import assert_equal
from superpipe_cluster.errors import BadInput
from superpipe_cluster.labelled_images import open_images
from superpipe_cluster.spec import ImagesSection
from worker_runs import Run
from zoo.torchvision_names import torchvision_can_be_imported

VIT = {
    "model_type": "vit", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6,
    "num_attention_heads": 4, "image_size": 16, "patch_size": 4, "hidden_dropout_prob": 0.1,
}  # fmt: skip
TIMM = {
    "model_type": "timm_wrapper", "architecture": "vit_tiny_patch16_224",
    "model_args": {"img_size": 16, "patch_size": 4, "depth": 5, "embed_dim": 48, "drop_rate": 0.1},
}  # fmt: skip
IMAGES = 120


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a folder for each digit."""
    folder, data = tmp_path_factory.mktemp("digits"), load_digits()
    for number in range(IMAGES):
        place = folder / str(data.target[number])
        place.mkdir(exist_ok=True)
        pixels = (data.images[number] * 15).astype(np.uint8)
        Image.fromarray(pixels).resize((20, 20)).save(place / f"{number:03}.png")
    return folder


def job(model: dict[str, Any], images: Path, **train: Any) -> dict[str, Any]:
    settings = {"epochs": 2, "batch_size": 6, "accumulate": 2, "lr": 1e-3, "checkpoint_every": 5, **train}
    return {
        "kind": "vision", "name": "v", "model": {"config": model},
        "images": {"train": str(images), "eval_share": 0.2}, "train": settings, "streaming": {"k": 3},
    }  # fmt: skip


@pytest.fixture(scope="module")
def importable(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the worker can import torchvision, whichever build of torch is here.

    `make test` does not install it: its wheel breaks the imports of a torch without CUDA. `make test-vision` does.
    """
    if find_spec("torchvision") is None or find_spec("timm") is None:
        pytest.skip("torchvision and timm are not installed: make test-vision")
    folder, zoo = tmp_path_factory.mktemp("site"), Path(__file__).parents[1] / "zoo"
    (folder / "sitecustomize.py").write_text(
        "from torchvision_names import torchvision_can_be_imported\ntorchvision_can_be_imported()\n"
    )
    return {"PYTHONPATH": f"{folder}:{zoo}"}


def train_plainly(model: Any, folder: Path, augment: str, settings: dict[str, Any]) -> float:
    """What the worker is to do, as one writes it by hand; returns the share of right answers."""
    torchvision_can_be_imported()
    from torchvision.transforms import v2

    images = open_images(ImagesSection(train=(str(folder),), eval_share=0.2), 0)
    norm = [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    resize = v2.Compose([v2.Resize((16, 16), antialias=True), *norm])
    crop = v2.Compose([v2.RandomResizedCrop((16, 16), antialias=True), v2.RandomHorizontalFlip(), *norm])
    seen, unseen = images

    def prepared(epoch: int, place: int) -> torch.Tensor:
        seed = int.from_bytes(
            hashlib.blake2b(f"0 {epoch} {place}".encode(), digest_size=7).digest(), "little"
        )
        before = torch.get_rng_state()
        torch.manual_seed(seed)
        pixels = (crop if augment == "crop" else resize)(seen.read(place))
        torch.set_rng_state(before)
        return pixels

    steps = len(seen) // 12 * 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=settings.get("weight_decay", 0.0))
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, 0, steps)
    torch.manual_seed(0)
    model.train()
    for epoch in range(2):
        order = torch.randperm(len(seen), generator=torch.Generator().manual_seed(epoch)).tolist()
        for start in range(0, len(seen) // 12 * 12, 12):
            for micro in (order[start : start + 6], order[start + 6 : start + 12]):
                pixels = torch.stack([prepared(epoch, place) for place in micro])
                labels = torch.tensor([seen.labels[place] for place in micro])
                with torch.autocast("cpu", torch.bfloat16, enabled=settings.get("precision") == "bfloat16"):
                    logits = model(pixel_values=pixels).logits
                loss = torch.nn.functional.cross_entropy(logits.float(), labels, label_smoothing=0.1)
                (loss / 2).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    model.eval()
    with torch.no_grad():
        pixels = torch.stack([resize(unseen.read(place)) for place in range(len(unseen))])
        made = torch.cat([model(pixel_values=some).logits for some in pixels.split(6)]).argmax(1)
    return float((made == torch.tensor(unseen.labels)).float().mean())


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
    importable: dict[str, str],
) -> None:
    asked = job(config, digits, label_smoothing=0.1, grad_clip=1.0, **settings)
    run = Run(tmp_path / "job", {**asked, "env": importable}, budget)
    run.kill_at(run.start(), 7)
    run.succeed()
    assert "resumed at step 5, attempt 2" in run.log()
    assert run.progress["loads"] > run.progress["units"]
    assert run.progress["peak_bytes"] <= budget
    assert run.progress["peak_units"] <= run.progress["k"] < run.progress["units"]

    torchvision_can_be_imported()
    torch.manual_seed(0)
    model = transformers.AutoModelForImageClassification.from_config(
        transformers.AutoConfig.for_model(**config, num_labels=10)
    )
    right = train_plainly(model, digits, settings["augment"], settings)
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


def test_too_few_images_are_said_before_training(
    digits: Path, tmp_path: Path, importable: dict[str, str]
) -> None:
    run = Run(tmp_path / "job", {**job(VIT, digits, batch_size=500), "env": importable}, 64 << 20)
    end = run.finish(run.start())
    assert end.reason == "bad_input"
    assert end.message is not None
    assert "are too few for a step of 1000" in end.message
