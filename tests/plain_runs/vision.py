"""Training an image classifier with torchvision, transformers and torch alone, as `train_vision` is to do it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from superpipe_cluster.labelled_images import open_images
from superpipe_cluster.spec import ImagesSection
from zoo.torchvision_names import torchvision_can_be_imported

#: Small ones, of each library.
VIT = {
    "model_type": "vit", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6,
    "num_attention_heads": 4, "image_size": 16, "patch_size": 4, "hidden_dropout_prob": 0.1,
}  # fmt: skip
TIMM = {
    "model_type": "timm_wrapper", "architecture": "vit_tiny_patch16_224",
    "model_args": {"img_size": 16, "patch_size": 4, "depth": 5, "embed_dim": 48, "drop_rate": 0.1},
}  # fmt: skip
#: What `trained` trains with, as a job file has it.
SETTINGS = {
    "epochs": 2, "batch_size": 6, "accumulate": 2, "lr": 1e-3, "label_smoothing": 0.1, "grad_clip": 1.0,
}  # fmt: skip


def trained(config: Mapping[str, Any], folder: Path, settings: Mapping[str, Any]) -> tuple[Any, float]:
    """The model after a job file's `train` on the digits of `folder`, and its share of right answers on a fifth."""
    torchvision_can_be_imported()
    from torchvision.transforms import v2

    torch.manual_seed(0)
    model = transformers.AutoModelForImageClassification.from_config(
        transformers.AutoConfig.for_model(**config, num_labels=10)
    )
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
        pixels = (crop if settings["augment"] == "crop" else resize)(seen.read(place))
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
    return model, float((made == torch.tensor(unseen.labels)).float().mean())
