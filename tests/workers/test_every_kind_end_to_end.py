"""Every kind of work that comes to an end, through `spcluster submit`: what the plain library makes, bit for bit.

All run beside each other on one device, each in fewer bytes than the weights of its model take. What goes on until it
is told to end is in tests/head/test_serve_end_to_end.py.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from PIL import Image

import pipelines
import round_figures
from commands import spcluster
from finetuning.bases import MARKED, conversations, write_base, write_rows
from plain_runs import embedding, finetuning, generation, painting, scripts, training, vision
from streaming.twins import assert_equal
from superpipe_cluster.head.cluster import UpOptions, down, up
from superpipe_cluster.head.home import Home
from superpipe_cluster.spec import files
from waiting import wait_until

pytestmark = [
    pytest.mark.timeout(400),  # whoever is first waits for all jobs
    # What libraries say of each other.
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]

#: Few layers, which are quick to plan; most of each is weights, so that a training fits in fewer bytes than these.
LLAMA = {
    "model_type": "llama", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6,
    "num_attention_heads": 4, "max_position_embeddings": 128, "vocab_size": 257, "bos_token_id": 256,
    "eos_token_id": 256, "pad_token_id": 256, "attention_dropout": 0.1,
}  # fmt: skip
VIT = {**vision.VIT, "num_hidden_layers": 12}
SOURCES = "python-stdlib:json/*.py"
CHATS = conversations(12)

TRAIN = {
    "steps": 8, "batch_size": 1, "sequence_length": 16, "accumulate": 1, "grad_clip": 1.0, "lr": 1e-3, "seed": 3,
}  # fmt: skip
FINETUNE = {**finetuning.SETTINGS, "lora": finetuning.LORA, "steps": 3, "sequence_length": 72}
VISION = {**vision.SETTINGS, "augment": "crop"}
GENERATE = {"prompts": [f"{'a longer beginning of ' * (n % 3)}f{n}(" for n in range(6)], "max_new_tokens": 12}
EMBED = {"texts": SOURCES, "batch_size": 2, "format": "npy"}
PAINT = {
    "prompts": ["a cat", "a house"], "images_per_prompt": 2, "batch_size": 2, "steps": 2, "guidance": 4.0,
    "seed": 7, "negative_prompt": "blurry", "width": 32, "height": 32,
}  # fmt: skip
SCRIPT_STEPS = 12


class Lab:
    """A cluster, and somebody who submits a job file of each kind and waits for all of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = Home(root / "home")
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        up(UpOptions(self.home.root, port=port, devices=("cpu:256MiB@2GB/s",)))
        round_figures.give_to(self.home)

    def run(self, jobs: dict[str, dict[str, Any]]) -> None:
        for kind, job in jobs.items():
            path = self.root / f"{kind}.yaml"
            path.write_text(yaml.safe_dump({"kind": kind, "name": kind, **job}))
            # To plan them all takes longer than the first ones run: nobody starts before everybody is in.
            self.say("submit", str(path), "--not-before", "1h")
        for kind in jobs:
            self.say("set", kind, "not_before=null")
        wait_until(self.all_run, "they all run beside each other", 60)
        spcluster("wait", *jobs, SPCLUSTER_HOME=str(self.home.root))
        self.records = {kind: json.loads(self.say("show", kind, "-o", "json")) for kind in jobs}

    def all_run(self) -> bool:
        queue = json.loads(self.say("queue", "-a", "-o", "json"))
        return {job["state"] for job in queue} <= {"STARTING", "RUNNING"}

    def say(self, *arguments: str) -> str:
        said = spcluster(*arguments, SPCLUSTER_HOME=str(self.home.root))
        assert said.returncode == 0, said.stderr
        return said.stdout

    def output(self, kind: str) -> Path:
        """What a job has left that was streamed, in the bytes that it had, and these were fewer than its weights."""
        record = self.records[kind]
        log = self.home.job(record["id"]).log.read_text()
        assert (record["state"], record["attempt"]) == ("SUCCEEDED", 1), log
        assert 0 < record["peak_bytes"] <= record["budget_bytes"] < record["model_bytes"]
        assert record["loads"] > record["units"] > record["k"] >= record["peak_units"] > 0
        return Path(record["output"])


def job_files(root: Path, digits: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """What the file of each kind says, and the device bytes that it may have; the folders that they name are made."""
    chats = write_rows(root / "chats.jsonl", CHATS)
    base = write_base(root / "base", layers=4, template=MARKED)
    pipeline = pipelines.saved(pipelines.stable_diffusion, root / "pipeline")
    (root / "changed.py").write_text(scripts.five_lines()[1])
    recompute = {"activations": "recompute"}
    images = {"train": str(digits), "eval_share": 0.2}
    return {
        "paint": ("5000KiB", {"model": {"source": str(pipeline)}, "paint": PAINT}),
        "train": ("3900KiB", {"model": {"config": LLAMA}, "data": {"files": [SOURCES]}, "train": TRAIN}),
        "finetune": (
            "2800KiB",
            {
                "model": {"source": str(base)}, "data": {"files": [str(chats)]}, "finetune": FINETUNE,
                "streaming": recompute,
            },
        ),
        "vision": ("1500KiB", {"model": {"config": VIT}, "images": images, "train": VISION, "streaming": recompute}),
        "generate": ("2000KiB", {"model": {"config": LLAMA}, "generate": GENERATE}),
        "embed": ("60MiB", {"embed": EMBED}),
        "script": ("2150KiB", {"run": f"python changed.py {SCRIPT_STEPS}"}),
    }  # fmt: skip


@pytest.fixture(scope="module")
def lab(
    tmp_path_factory: pytest.TempPathFactory, digits: Path, request: pytest.FixtureRequest
) -> Iterator[Lab]:
    root = tmp_path_factory.mktemp("lab")
    jobs = {
        kind: {**job, "resources": {"gpu_memory": size}}
        for kind, (size, job) in job_files(root, digits).items()
    }
    # What needs a package that is not here is left out, and its own test says so.
    for kind, needed in (("embed", "minilm"), ("vision", "with_torchvision")):
        try:
            request.getfixturevalue(needed)
        except pytest.skip.Exception:
            del jobs[kind]
    if "embed" in jobs:
        jobs["embed"]["model"] = {"source": str(request.getfixturevalue("minilm"))}
    made = Lab(root)
    try:
        made.run(jobs)
        yield made
    finally:
        down(made.home.root)


def test_train_has_the_weights_of_torch(lab: Lab) -> None:
    texts = [path.read_bytes() for path in files.expand(SOURCES)]
    expected = training.trained(LLAMA, texts, TRAIN)
    made = transformers.AutoModelForCausalLM.from_pretrained(lab.output("train"))
    assert_equal(made.state_dict(), expected.state_dict())


def test_finetune_has_the_adapter_of_peft(lab: Lab, tmp_path: Path) -> None:
    words = transformers.AutoTokenizer.from_pretrained(lab.root / "base")
    examples = finetuning.tokenized(words, CHATS)
    plain = finetuning.Plain(lab.root / "base", lora={})
    plain.train(
        lambda chosen: finetuning.collated([examples[one] for one in chosen], words),
        len(CHATS),
        FINETUNE["steps"],
    )
    made = lab.output("finetune") / "last" / "adapter_model.safetensors"
    assert made.read_bytes() == plain.saved(tmp_path)


def test_generate_has_the_tokens_of_transformers(lab: Lab) -> None:
    expected = generation.greedy(LLAMA, GENERATE["prompts"], GENERATE["max_new_tokens"])
    lines = (lab.output("generate") / "completions.jsonl").read_text().splitlines()
    assert [json.loads(line)["completion"] for line in lines] == expected
    assert len(set(expected)) > 1


def test_embed_has_the_vectors_of_transformers(lab: Lab, minilm: Path) -> None:
    paths, made = files.expand(SOURCES), lab.output("embed")
    expected = embedding.vectors(minilm, [path.read_text() for path in paths], EMBED["batch_size"])
    assert np.array_equal(np.load(made / "embeddings.npy"), expected)
    ids = [json.loads(line) for line in (made / "ids.jsonl").read_text().splitlines()]
    assert ids == [path.name for path in paths]


def test_paint_has_the_pixels_of_diffusers(lab: Lab) -> None:
    expected = painting.painted(lab.root / "pipeline", PAINT)
    made = [Image.open(path) for path in sorted(lab.output("paint").glob("*.png"))]
    assert [image.tobytes() for image in made] == [image.tobytes() for image in expected]
    assert len({image.tobytes() for image in expected}) == 4


def test_script_has_the_weights_of_the_plain_script(lab: Lab, tmp_path: Path) -> None:
    expected = scripts.trained(scripts.five_lines()[0], SCRIPT_STEPS, tmp_path)
    assert_equal(torch.load(lab.output("script") / "model.pt"), expected)


@pytest.mark.usefixtures("with_torchvision")
def test_vision_has_the_weights_of_torch(lab: Lab, digits: Path) -> None:
    expected, _ = vision.trained(VIT, digits, VISION)
    made = transformers.AutoModelForImageClassification.from_pretrained(lab.output("vision"))
    assert_equal(made.state_dict(), expected.state_dict())
