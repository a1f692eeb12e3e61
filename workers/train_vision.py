"""Train an image classifier, Hugging Face's or timm's, streamed within the job's budget.

One flat program: read it from `main` down. It resumes from the job's last checkpoint by itself, and then goes on with
the very bits it would have had: which images a batch has follows from the seed and its number alone, and how an image
is augmented from the seed, the epoch and the image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from superpipe_cluster import pretrained
from superpipe_cluster.errors import BadInput
from superpipe_cluster.labelled_images import LabelledImages, open_images
from superpipe_cluster.outputs import require_writable
from superpipe_cluster.spec import ModelSection, VisionJob, VisionTrainSection
from superpipe_cluster.training_state import (
    load_training,
    make_optimizer,
    make_schedule,
    save_training,
    training_probe,
    unique_weights,
    weights_file,
)

if TYPE_CHECKING:
    from superpipe_cluster.execution.job import Job
    from superpipe_cluster.planning import Probe

#: Of ImageNet, where the model does not say how its images were normalized.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main(job: Job) -> None:
    """Set up, resume, train, evaluate, save."""
    asked = job.spec
    assert isinstance(asked, VisionJob)  # the job file was checked: its sections are there
    assert asked.model is not None
    assert asked.images is not None
    assert asked.train is not None
    settings = asked.train
    images, unseen = open_images(asked.images, settings.seed)
    config = load_config(asked.model, images.classes)
    size = image_size(config, settings)
    per_epoch = len(images) // settings.batch_size // settings.accumulate
    if per_epoch == 0:
        raise BadInput(
            f"images.train: {len(images)} images are too few for a step of "
            f"{settings.batch_size * settings.accumulate}",
            hint="give more images, or a smaller train.batch_size",
        )
    steps = per_epoch * settings.epochs
    mean, std = normalization(asked.model, config)
    training = Samples(images, transforms(settings.augment, size, mean, std), settings.seed)
    evaluated = Samples(unseen, transforms("none", size, mean, std), settings.seed)
    job.log(
        f"{len(images)} images of {len(images.classes)} classes, {len(unseen)} to evaluate on; {steps} steps"
    )
    require_writable(job.output, "model.safetensors")

    checkpoint = job.latest_checkpoint()
    model, weights = pretrained.build_to_stream(
        asked.model, config, "AutoModelForImageClassification", weights_file(checkpoint)
    )
    model.train()
    with job.stream(model, weights=weights) as streamer:
        optimizer = make_optimizer(settings, streamer.optimizer)
        schedule = make_schedule(settings, optimizer, steps)
        torch.manual_seed(settings.seed)
        step = 0
        if checkpoint is not None:
            step = load_training(checkpoint, optimizer, schedule)["step"]
            job.log(f"resumed at step {step}, attempt {job.attempt}")
        stats = streamer.stats()
        job.log(
            f"{stats.units} units, {stats.k} on the device at once; {stats.model_bytes / 2**20:.0f} MiB of weights"
        )

        saved, scores = step, {}
        batches = batches_from(step * settings.accumulate, training, settings, asked.resources.cpus - 1)
        while step < steps and not job.should_stop:
            loss = 0.0
            for _ in range(settings.accumulate):
                pixels, labels = next(batches)
                part = loss_of(model, pixels.to(streamer.device), labels.to(streamer.device), settings)
                part.backward()
                loss += part.item()
            if settings.grad_clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            step += 1

            if len(unseen) and (step % (settings.eval_every or per_epoch) == 0 or step == steps):
                scores = evaluate(model, evaluated, settings, streamer.device)
                job.log(f"step {step}/{steps}  top-1 {scores['top1']:.4f}  top-5 {scores['top5']:.4f}")
            job.progress(step=step, steps=steps, loss=loss, **scores)
            if step % settings.log_every == 0 or step == steps:
                job.log(f"step {step}/{steps}  loss {loss:.4f}")
            if step % settings.checkpoint_every == 0 and step < steps:
                save(job, model, optimizer, schedule, step)
                saved = step
        if step > saved:
            save(job, model, optimizer, schedule, step)

    if step == steps:
        model.save_pretrained(job.output)
        job.log(f"model written to {job.output}")


def probe(job: VisionJob) -> Probe:
    """One micro-batch of this job's training, for the plan made before it runs."""
    assert job.model is not None
    assert job.images is not None
    assert job.train is not None
    settings = job.train
    images, _ = open_images(job.images, settings.seed)
    config = load_config(job.model, images.classes)
    model = pretrained.build_model(job.model, config, "AutoModelForImageClassification", weights=False)
    model.train()
    pixels = torch.zeros(settings.batch_size, 3, *[image_size(config, settings)] * 2)
    labels = torch.zeros(settings.batch_size, dtype=torch.long)

    return training_probe(model, lambda: loss_of(model, pixels, labels, settings).backward(), settings)


# ---- the model ----------------------------------------------------------------------------------------


def load_config(section: ModelSection, classes: tuple[str, ...]) -> Any:
    """The model's configuration, for these classes."""
    config = pretrained.load_config(section, num_labels=len(classes))
    if config.num_labels != len(classes):
        config.num_labels = len(classes)
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: place for place, name in enumerate(classes)}
    return config


def image_size(config: Any, settings: VisionTrainSection) -> int:
    """Height and width of the images in the model, in pixels."""
    if settings.image_size is not None:
        return settings.image_size
    size = getattr(config, "image_size", None)
    if size is None:  # timm's models say it among their arguments, or with their weights
        size = (getattr(config, "model_args", None) or {}).get("img_size")
    if size is None:
        size = (getattr(config, "pretrained_cfg", None) or {}).get("input_size", [224])[-1]
    return size if isinstance(size, int) else size[0]


def normalization(section: ModelSection, config: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the images that the model was trained on."""
    said: dict[str, Any] = getattr(config, "pretrained_cfg", None) or {}
    if section.source is not None and not said:
        mixin = pretrained.transformers("vision").image_processing_base.ImageProcessingMixin
        try:
            stored, _ = mixin.get_image_processor_dict(section.source)
            said = {"mean": stored["image_mean"], "std": stored["image_std"]}
        except (OSError, KeyError):  # it does not say
            said = {}
    return tuple(said.get("mean", _MEAN)), tuple(said.get("std", _STD))


def loss_of(
    model: Any, pixels: torch.Tensor, labels: torch.Tensor, settings: VisionTrainSection
) -> torch.Tensor:
    """The loss of a micro-batch, its part of the step's."""
    with precision(settings, pixels.device):
        logits = model(pixel_values=pixels.to(model.dtype)).logits
    return (
        cross_entropy(logits.float(), labels, label_smoothing=settings.label_smoothing) / settings.accumulate
    )


def precision(settings: VisionTrainSection, device: torch.device) -> AbstractContextManager[Any]:
    """The number format to compute in."""
    return torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16")


@torch.no_grad()
def evaluate(
    model: Any, samples: Samples, settings: VisionTrainSection, device: torch.device
) -> dict[str, float]:
    """Share of the images whose class is the first, or among the first five, that the model names."""
    model.eval()
    first = among = 0
    for start in range(0, len(samples.images), settings.batch_size):
        chosen = [
            samples[0, place] for place in range(start, min(start + settings.batch_size, len(samples.images)))
        ]
        pixels = torch.stack([pixels for pixels, _ in chosen]).to(device)
        labels = torch.tensor([label for _, label in chosen], device=device)
        with precision(settings, device):
            logits = model(pixel_values=pixels.to(model.dtype)).logits
        hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        first += int(hits[:, 0].sum())
        among += int(hits.sum())
    model.train()
    return {"top1": first / len(samples.images), "top5": among / len(samples.images)}


# ---- images -------------------------------------------------------------------------------------------


class Samples(Dataset[tuple[torch.Tensor, int]]):
    """Images as the model gets them, by epoch and place."""

    def __init__(self, images: LabelledImages, transform: Callable[[Any], torch.Tensor], seed: int) -> None:
        self.images = images
        self._transform = transform
        self._seed = seed

    def __getitem__(self, which: tuple[int, int]) -> tuple[torch.Tensor, int]:
        epoch, place = which
        drawn = hashlib.blake2b(f"{self._seed} {epoch} {place}".encode(), digest_size=7).digest()
        with torch.random.fork_rng(devices=[]):
            # This one alone: `torch.manual_seed` would also seed the GPU, which has the model's dropout.
            torch.default_generator.manual_seed(int.from_bytes(drawn, "little"))
            return self._transform(self.images.read(place)), self.images.labels[place]


def batches_from(
    first: int, samples: Samples, settings: VisionTrainSection, processes: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batch `first` and all later ones: `float[batch, 3, height, width]` and `int64[batch]`."""
    per_epoch = len(samples.images) // settings.batch_size // settings.accumulate * settings.accumulate

    def places() -> Iterator[list[tuple[int, int]]]:
        for epoch in range(first // per_epoch, settings.epochs):
            generator = torch.Generator().manual_seed((settings.seed << 32) + epoch)
            order = torch.randperm(len(samples.images), generator=generator).tolist()
            for batch in range(first % per_epoch if epoch == first // per_epoch else 0, per_epoch):
                at = batch * settings.batch_size
                yield [(epoch, place) for place in order[at : at + settings.batch_size]]

    # A generator of its own: the loader draws a number, and the model's dropout must not notice.
    return iter(
        DataLoader(
            samples,
            batch_sampler=places(),
            num_workers=processes,
            generator=torch.Generator(),  # pyright: ignore[reportArgumentType]
        )
    )


def transforms(
    augment: str, size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[Any], torch.Tensor]:
    """From a picture to the model's input, `float[3, size, size]`."""
    try:
        from torchvision.transforms import v2  # pyright: ignore[reportMissingImports] (its wheel wants a torch of its own)
    except ImportError as error:
        raise BadInput(
            "images are prepared with torchvision, which is not installed here",
            hint='pip install "superpipe_cluster[vision]"',
        ) from error
    if augment == "none":
        first: list[Any] = [v2.Resize((size, size), antialias=True)]
    else:
        first = [v2.RandomResizedCrop((size, size), antialias=True), v2.RandomHorizontalFlip()]
        first += [v2.RandAugment()] if augment == "rand" else []
    return v2.Compose([*first, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


# ---- training -----------------------------------------------------------------------------------------


def save(job: Job, model: Any, optimizer: Any, schedule: Any, step: int) -> None:
    """Commit a checkpoint."""
    job.save(
        step, lambda folder: save_training(folder, unique_weights(model), optimizer, schedule, step=step)
    )
