"""Painting: the pixels of the plain pipeline, whatever family it is of, and the bytes of an undisturbed run."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import pipelines
from plain_runs.painting import painted, plain
from superpipe_cluster import bundled, spec
from superpipe_cluster.errors import BadInput
from superpipe_cluster.planning.model_plan import recorded
from superpipe_cluster.planning.profile import plan_of
from superpipe_cluster.streaming import stream
from worker_runs import Run

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

PAINT = runpy.run_path(str(bundled.worker_path("paint")))
PROMPTS = ["a cat", "a dog in the rain", "a house"]
SETTINGS = {
    "prompts": PROMPTS, "images_per_prompt": 2, "batch_size": 2, "steps": 3, "guidance": 4.0, "seed": 7,
    "negative_prompt": "blurry", "width": 32, "height": 32,
}  # fmt: skip
WHOLE, SMALL = 64 << 20, 5_000_000  # of 6.5 MB


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Stable Diffusion with random weights."""
    return pipelines.saved(pipelines.stable_diffusion, tmp_path_factory.mktemp("pipeline"))


def job(folder: Path, **changes: Any) -> dict[str, Any]:
    return {"kind": "paint", "name": "p", "model": {"source": str(folder)}, "paint": {**SETTINGS, **changes}}


def contents(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(output.iterdir())}


def test_pictures_are_the_plain_pipelines_and_a_killed_job_leaves_the_bytes_of_an_undisturbed_one(
    folder: Path, tmp_path: Path
) -> None:
    whole = Run(tmp_path / "whole", job(folder), WHOLE)
    whole.here()
    cut = Run(tmp_path / "cut", job(folder), SMALL)
    assert whole.progress["step"] == whole.progress["steps"] == spec.parse(job(folder)).steps == 9
    assert whole.progress["metrics"]["pictures"] == 6
    cut.kill_at(cut.start(), 4)
    (cut.output / "00003.part").write_bytes(b"half a picture")
    cut.here()
    assert contents(cut.output) == contents(whole.output)
    assert " 2 done" in cut.log() or " 4 done" in cut.log()
    assert cut.progress["loads"] > cut.progress["units"]
    assert cut.progress["peak_bytes"] <= SMALL < cut.progress["model_bytes"]

    expected = painted(folder, SETTINGS)
    lines = [json.loads(line) for line in (cut.output / "images.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(6))
    for line, image in zip(lines, expected, strict=True):
        found = Image.open(cut.output / line["file"])
        assert found.tobytes() == image.tobytes()
        assert (found.info["prompt"], found.info["seed"]) == (
            PROMPTS[line["index"] // 2],
            str(7 + line["index"]),
        )
        assert (found.info["steps"], found.info["guidance"], found.info["negative_prompt"]) == (
            "3",
            "4.0",
            "blurry",
        )
    assert len({image.tobytes() for image in expected}) == 6


@pytest.mark.parametrize("family", pipelines.FAMILIES)
def test_every_family_paints_its_own_pixels_from_a_part_of_its_weights(family: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    pipeline = family(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    call = {"prompt": ["a cat"], "num_inference_steps": 2, "width": 32, "height": 32, "output_type": "pt"}
    if family is pipelines.flux:
        call["max_sequence_length"] = 16

    def seeded() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(3)]

    expected = pipeline(generator=seeded(), **call).images
    painter = PAINT["Painter"](pipeline)
    weights = sum(parameter.nbytes for parameter in painter.parameters())
    with stream(painter, k=4, poison=True) as streamer:
        for _ in range(2):  # learning the order, and knowing it
            assert torch.equal(painter(generator=seeded(), **call), expected)
        stats = streamer.stats()
    assert stats.peak_units <= 4 < stats.units
    assert stats.model_bytes >= weights
    assert stats.loads > stats.units


def test_the_smallest_budget_of_the_plan_is_enough_for_the_same_pixels(tmp_path: Path) -> None:
    folder = pipelines.saved(pipelines.stable_diffusion_3, tmp_path)
    asked = spec.parse(job(folder, prompts=["a"], images_per_prompt=1, steps=2, batch_size=1))
    trace = recorded(lambda: PAINT["probe"](asked))
    assert trace.counted_as == asked.steps == 2
    floor_bytes = plan_of(trace, cuda=False).floor_bytes
    pipeline = plain(folder)
    call = {**PAINT["call_of"](pipeline, asked.paint), "prompt": ["a"], "output_type": "pt"}
    expected = pipeline(generator=torch.Generator().manual_seed(3), **call).images
    with stream(PAINT["Painter"](pipeline), floor_bytes) as streamer:
        for _ in range(2):
            assert torch.equal(streamer.model(generator=torch.Generator().manual_seed(3), **call), expected)
        stats = streamer.stats()
    assert stats.peak_bytes <= floor_bytes
    assert stats.loads > stats.units


def test_a_list_of_other_pictures_is_left_alone(folder: Path, tmp_path: Path) -> None:
    settings = spec.PaintSection(**SETTINGS)
    wanted = [prompt for prompt in PROMPTS for _ in range(2)]
    lines = [json.dumps(PAINT["facts"](settings, wanted, number)) + "\n" for number in range(6)]
    for number in range(5):
        (tmp_path / f"{number:05}.png").touch()

    def kept(text: str) -> int:
        (tmp_path / "images.jsonl").write_text(text)
        return PAINT["keep_whole_batches"](tmp_path, settings, wanted)

    assert kept("".join(lines[:3])) == 2
    assert (tmp_path / "images.jsonl").read_text() == "".join(lines[:2])
    assert kept("".join(lines[:4]) + lines[4][:-5]) == 4
    assert kept("".join(lines)) == 4, "the last picture is not there"
    (tmp_path / "00005.png").touch()
    assert kept("".join(lines)) == 6
    for other in (lines[1], "?\n", "7\n"):
        with pytest.raises(BadInput, match=r"line 1 of .* is about a picture of another job"):
            kept(other)


@pytest.mark.parametrize(
    ("model", "changes", "said"),
    [
        ({"source": "."}, {}, "model.source: cannot load ."),
        ({"dtype": "float16"}, {}, "model.dtype: the decoder"),
        ({}, {"width": 33}, "paint.width: 33 pixels are no multiple of 2"),
        ({}, {"prompts": "empty.txt"}, "paint.prompts: no prompt in empty.txt"),
        ({"source": "denoiser"}, {}, "which does not paint from texts alone"),
    ],
)
def test_what_cannot_be_painted_is_said_before_painting(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: dict[str, Any],
    changes: dict[str, Any],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    if model.get("source") == "denoiser":
        unet = pipelines.diffusers.UNet2DModel(
            sample_size=8, block_out_channels=(8,), norm_num_groups=4,
            down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        )  # fmt: skip
        pipelines.diffusers.DDPMPipeline(unet, pipelines.diffusers.DDPMScheduler()).save_pretrained(
            "denoiser"
        )

    class Stub:
        spec = globals()["spec"].parse({**job(folder, **changes), "model": {"source": str(folder), **model}})
        output = tmp_path / "output"

    with pytest.raises(BadInput) as caught:
        PAINT["main"](Stub())
    assert said in caught.value.message
    assert caught.value.hint


def test_an_output_that_cannot_be_written_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"output: cannot write .*images\.jsonl"):
        PAINT["require_writable"](tmp_path / "file" / "folder", "images.jsonl")


def test_a_pipeline_is_no_inline_configuration(folder: Path) -> None:
    with pytest.raises(BadInput) as caught:
        spec.parse({**job(folder), "model": {"config": {"model_type": "llama"}}})
    assert "a pipeline has its own" in "".join(getattr(caught.value, "problems", ()))
