"""Paint pictures with a text-to-image pipeline of diffusers, all of it streamed within the job's one budget.

One flat program: read it from `main` down. Text encoders, denoiser and decoder are parts of one streamed model, whose
step is a batch of pictures: so each has the whole budget while it is its turn, and the next one's weights come while
the last one's leave. `output/` has `00000.png` and so on, each with its prompt and settings inside, and `images.jsonl`
with a line for each. A job that is started again goes on behind the last whole batch, with the bytes it would have had.
"""

from __future__ import annotations

import importlib
import json
import os
import warnings
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from superpipe_cluster.errors import BadInput, first_line
from superpipe_cluster.language_models import read_prompts
from superpipe_cluster.outputs import require_writable
from superpipe_cluster.planning import Probe
from superpipe_cluster.spec import ModelSection, PaintJob, PaintSection

if TYPE_CHECKING:
    from PIL.Image import Image

    from superpipe_cluster.execution.job import Job


class Painter(nn.Module):
    """A pipeline as one module: its parts are streamed together, and calling it paints a batch."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
        self.parts = nn.ModuleDict(parts)
        self.pipeline = pipeline

    def forward(self, **call: Any) -> Any:
        """The pipeline's pictures."""
        return self.pipeline(**call).images


def main(job: Job) -> None:
    """Set up, find where to go on, paint batch by batch."""
    asked = job.spec
    assert isinstance(asked, PaintJob)
    assert asked.model is not None
    assert asked.paint is not None
    settings = asked.paint
    prompts = read_prompts(settings.prompts, "paint.prompts")
    wanted = [prompt for prompt in prompts for _ in range(settings.images_per_prompt)]
    require_writable(job.output, "images.jsonl")
    pipeline = load_pipeline(asked.model)
    common = call_of(pipeline, settings)

    done = keep_whole_batches(job.output, settings, wanted)
    painter = (
        Painter(pipeline).eval().requires_grad_(False)
    )  # weights that never change can be shared with other jobs
    with job.stream(painter) as streamer, (job.output / "images.jsonl").open("a", encoding="utf-8") as lines:
        stats = streamer.stats()
        job.log(
            f"{type(pipeline).__name__}: {len(wanted)} pictures, {done} done; {stats.units} units, {stats.k} of them "
            "on the device at once"
        )
        steps = settings.steps_of(len(wanted))
        job.progress(step=settings.steps_of(done), steps=steps, pictures=done)

        def at_denoising_step(running: Any, number: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            # Budgets change and pauses begin between two of these steps, and not a whole picture later.
            running._interrupt = job.should_stop
            # Some schedulers denoise more often than they were asked to.
            job.progress(step=settings.steps_of(done) + min(number + 1, settings.steps), steps=steps)
            return tensors

        while done < len(wanted) and not job.should_stop:
            numbers = range(done, min(done + settings.batch_size, len(wanted)))
            images = painter(
                prompt=[wanted[number] for number in numbers],
                # On the host: a picture's first noise is then the same on every device, and in every batch.
                generator=[torch.Generator().manual_seed(seed_of(settings, number)) for number in numbers],
                callback_on_step_end=at_denoising_step,
                **(
                    {"negative_prompt": [settings.negative_prompt] * len(numbers)}
                    if settings.negative_prompt
                    else {}
                ),
                **common,
            )
            if job.should_stop:
                break  # perhaps in the middle of this batch: it is painted anew
            for number, image in zip(numbers, images, strict=True):
                about = facts(settings, wanted, number) | {"width": image.width, "height": image.height}
                about |= {"model": asked.model.source, "dtype": asked.model.dtype}
                write_png(job.output / about["file"], image, about)
                lines.write(json.dumps(about, ensure_ascii=False) + "\n")
            lines.flush()
            done = numbers.stop
            job.progress(step=settings.steps_of(done), steps=steps, pictures=done)
            job.log(f"{done}/{len(wanted)} pictures")
    if done == len(wanted):
        job.log(f"pictures written to {job.output}")


# ---- the pipeline -------------------------------------------------------------------------------------


def load_pipeline(section: ModelSection) -> Any:
    """The pipeline of a folder or of the hub, its weights in host memory.

    Raises:
        BadInput: there is none, or it is none that paints from texts.
    """
    diffusers = library()
    try:
        dtype = getattr(torch, section.dtype)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # the newest diffusers say `dtype`, others know only this
            pipeline = diffusers.DiffusionPipeline.from_pretrained(section.source, torch_dtype=dtype)
    except Exception as error:
        raise no_pipeline(section, error) from error
    if not takes(pipeline, "prompt", "generator", "callback_on_step_end", "num_inference_steps"):
        raise BadInput(
            f"model.source: {section.source} is a {type(pipeline).__name__}, which does not paint from texts alone",
            hint="name a text-to-image pipeline: Stable Diffusion, XL, 3, Flux or their like",
        )
    if section.dtype == "float16" and getattr(
        getattr(getattr(pipeline, "vae", None), "config", None), "force_upcast", False
    ):
        raise BadInput(
            f"model.dtype: the decoder of {section.source} overflows in float16", hint="write dtype: bfloat16"
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def no_pipeline(section: ModelSection, error: Exception) -> BadInput:
    """What is wrong with a source that no pipeline comes from."""
    return BadInput(
        f"model.source: cannot load {section.source}: {first_line(error)}",
        hint="name a folder with a model_index.json, as save_pretrained() writes it, or a hub model of diffusers",
    )


def call_of(pipeline: Any, settings: PaintSection) -> dict[str, Any]:
    """The arguments that all pictures have in common.

    Raises:
        BadInput: the pipeline does not know one, or cannot paint in this size.
    """
    named = {
        "negative_prompt": settings.negative_prompt,
        "guidance_scale": settings.guidance,
        "width": settings.width,
        "height": settings.height,
    }
    call = {name: value for name, value in named.items() if value is not None}
    for name in call:
        if not takes(pipeline, name):
            field = name.removesuffix("_scale")
            raise BadInput(f"paint.{field}: {type(pipeline).__name__} has no such thing", hint="leave it out")
    grain = getattr(pipeline, "vae_scale_factor", 8)
    for name in ("width", "height"):
        if call.get(name, grain) % grain:
            raise BadInput(
                f"paint.{name}: {call[name]} pixels are no multiple of {grain}, as this pipeline's must be",
                hint=f"write {max(grain, call[name] // grain * grain)}",
            )
    call.pop("negative_prompt", None)  # it has to be as many as there are prompts
    return {**call, "num_inference_steps": settings.steps}


def takes(pipeline: Any, *names: str) -> bool:
    """Whether a pipeline's call has arguments of these names."""
    return set(names) <= set(signature(pipeline.__call__).parameters)


def library() -> Any:
    """diffusers, quiet.

    Raises:
        BadInput: it is not installed.
    """
    try:
        import diffusers
        import PIL  # noqa: F401
        import transformers
    except ImportError as error:
        raise BadInput(
            f"painting needs diffusers, transformers and pillow: {first_line(error)}",
            hint='pip install "superpipe_cluster[diffusion]"',
        ) from error
    for one in (diffusers, transformers):
        one.utils.logging.set_verbosity_error()
        one.utils.logging.disable_progress_bar()
    return diffusers


# ---- pictures -----------------------------------------------------------------------------------------


def seed_of(settings: PaintSection, number: int) -> int:
    """The seed of a picture: it depends on its number alone, whenever and beside whatever it is painted."""
    return (settings.seed + number) % 2**63


def facts(settings: PaintSection, wanted: list[str], number: int) -> dict[str, Any]:
    """What a picture is painted from."""
    return {
        "index": number,
        "file": f"{number:05}.png",
        "prompt": wanted[number],
        "negative_prompt": settings.negative_prompt,
        "seed": seed_of(settings, number),
        "steps": settings.steps,
        "guidance": settings.guidance,
    }


def write_png(path: Path, image: Image, about: dict[str, Any]) -> None:
    """A picture with what it is in its text chunks; it is there whole, or not at all."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for name, value in about.items():
        if value is not None and name not in ("index", "file", "width", "height"):
            chunks.add_itxt(name, str(value))
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        image.save(file, format="PNG", pnginfo=chunks)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def keep_whole_batches(folder: Path, settings: PaintSection, wanted: list[str]) -> int:
    """Cut the list of an earlier attempt back to whole batches whose pictures are there; returns how many are done.

    Raises:
        BadInput: it is a list of other pictures.
    """
    path = folder / "images.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = 0
    while whole < len(lines) and lines[whole].endswith("\n") and (folder / f"{whole:05}.png").is_file():
        if whole >= len(wanted) or not is_about(lines[whole], facts(settings, wanted, whole)):
            raise BadInput(
                f"output: line {whole + 1} of {path} is about a picture of another job",
                hint="name another folder, or remove the pictures that are there",
            )
        whole += 1
    # A batch that was cut is painted again, and so is a short last one: its pictures are the same.
    kept = whole if whole == len(wanted) else whole // settings.batch_size * settings.batch_size
    path.write_text("".join(lines[:kept]), encoding="utf-8")
    for part in folder.glob("*.part"):
        part.unlink()
    return kept


def is_about(line: str, picture: dict[str, Any]) -> bool:
    """Whether a line of the list is about this picture."""
    try:
        return picture.items() <= json.loads(line).items()
    except (ValueError, AttributeError):
        return False


# ---- the plan -----------------------------------------------------------------------------------------


def probe(job: PaintJob) -> Probe:
    """One batch of pictures; of three denoising steps at most, for all of them are alike.

    The scheduler is one that asks for no values: between the steps of a plan there are none.
    """
    assert job.model is not None
    assert job.paint is not None
    settings = job.paint
    pipeline = without_weights(job.model)
    steps = min(3, settings.steps)
    call = call_of(pipeline, settings) | {"num_inference_steps": steps}
    painter = Painter(pipeline).eval().requires_grad_(False)
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None  # looks at pixels; its weights are counted still
    prompts = ["a"] * settings.batch_size
    return Probe(painter, lambda: painter(prompt=prompts, output_type="pt", **call), steps=steps)


def without_weights(section: ModelSection) -> Any:
    """The pipeline with parts of the right shape only.

    Raises:
        BadInput: as `load_pipeline`.
    """
    diffusers = library()
    try:
        index = diffusers.DiffusionPipeline.load_config(section.source)
        named = {name: value for name, value in index.items() if isinstance(value, (list, tuple))}
        parts = {name: part_without_weights(section, name, *value) for name, value in named.items()}
        flags = {name: value for name, value in index.items() if isinstance(value, bool)}
        parts["scheduler"].__class__ = type("Valueless", (Valueless, type(parts["scheduler"])), {})
        pipeline = getattr(diffusers, index["_class_name"])(**parts, **flags)
    except Exception as error:
        raise no_pipeline(section, error) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def part_without_weights(section: ModelSection, name: str, origin: str | None, kind: str | None) -> Any:
    """One part of a pipeline: a model without its weights, anything else as it is."""
    if origin is None or kind is None:
        return None
    source = section.source
    module = origin if origin in ("diffusers", "transformers") else f"diffusers.pipelines.{origin}"
    class_: Any = getattr(importlib.import_module(module), kind)
    if nn.Module not in class_.__mro__:
        with unset_fake_temporarily():  # it computes tables, and reads values from them
            return class_.from_pretrained(source, subfolder=name)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, section.dtype))
    try:
        if origin == "diffusers":
            return class_.from_config(class_.load_config(source, subfolder=name))
        return class_(class_.config_class.from_pretrained(source, subfolder=name))
    finally:
        torch.set_default_dtype(before)


class Valueless:
    """Instead of a scheduler's own methods, which look up where in its tables a step is."""

    init_noise_sigma = 1.0

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: Any = None,
    ) -> None:
        """So many steps, at any moments."""
        self.num_inference_steps = num_inference_steps or len(timesteps if sigmas is None else sigmas)
        self.timesteps = torch.linspace(999, 1, self.num_inference_steps)
        self.sigmas = torch.linspace(1, 0, self.num_inference_steps + 1)

    def scale_model_input(self, sample: torch.Tensor, timestep: object = None) -> torch.Tensor:
        """The latents as large as they were."""
        return sample * 1.0

    def step(
        self, model_output: torch.Tensor, timestep: object, sample: torch.Tensor, return_dict: bool = True
    ) -> tuple[torch.Tensor]:
        """The next latents."""
        return (sample + model_output[:, : sample.shape[1]],)
