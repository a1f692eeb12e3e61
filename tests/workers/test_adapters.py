"""PEFT adapters as models of jobs: the tokens and vectors of PEFT alone, from a part of the base on the device."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import peft
import pytest
import torch
import transformers

from finetuning.bases import write_adapter, write_base
from superpipe_cluster import bundled, spec
from superpipe_cluster.embedding import Encoder
from superpipe_cluster.errors import BadInput
from superpipe_cluster.planning import Plan
from superpipe_cluster.planning.model_plan import probe_of_job, recorded
from superpipe_cluster.planning.profile import plan_of
from superpipe_cluster.spec import EmbedSection, JobSpec, ModelSection
from superpipe_cluster.streaming import stream
from worker_runs import Run

pytestmark = [
    pytest.mark.timeout(300),
    # What PEFT and its callees say about each other.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.* is deprecated:FutureWarning"),
]

MODEL_BYTES = 2_370_000  # of the base
BUDGET = 1_900_000
PROMPTS = ["def load(", "import ", "class Decoder", "return None if", "a longer beginning of a text: "]
#: By name: what is in the adapter, in the words of job files and in PEFT's.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lora": ({}, {}),
    "dora": (
        {"dora": True, "modules_to_save": ["lm_head"]},
        {"use_dora": True, "modules_to_save": ["lm_head"]},
    ),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"), layers=3)


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapter"), base)


def generate(source: Path | str, **more: Any) -> dict[str, Any]:
    settings = {"prompts": PROMPTS, "max_new_tokens": 12}
    return {"kind": "generate", "name": "g", "model": {"source": str(source)}, "generate": settings, **more}


def by_peft(base: Path, adapter: Path | None) -> list[str]:
    """What PEFT's own `generate` says greedily to each prompt; without an adapter, the base's."""
    words = transformers.AutoTokenizer.from_pretrained(base)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter).eval()
    said = []
    for prompt in PROMPTS:
        given = torch.tensor([words.encode(prompt)])
        made = model.generate(
            input_ids=given, attention_mask=torch.ones_like(given), max_new_tokens=12, do_sample=False
        )
        said.append(words.decode(made[0, given.shape[1] :], skip_special_tokens=True))
    return said


def planned(job: JobSpec) -> Plan:
    return plan_of(recorded(probe_of_job(job)), cuda=False)


@pytest.mark.parametrize("kind", KINDS)
def test_completions_are_pefts_own_within_the_bytes_planned_before_the_adapter_was_there(
    kind: str, base: Path, tmp_path: Path
) -> None:
    asked, in_peft = KINDS[kind]
    adapter = write_adapter(tmp_path / "adapter", base, **in_peft)
    maker = spec.parse(
        {
            "kind": "finetune", "name": "f", "model": {"source": str(base)}, "data": {"files": ["a"]},
            "finetune": {"lora": {"r": 4, "alpha": 8, **asked}},
        }
    )  # fmt: skip
    foreseen = planned(spec.parse(generate("job:f")).over(maker))
    assert foreseen == planned(spec.parse(generate(adapter)))
    assert foreseen.model_bytes > (base / "model.safetensors").stat().st_size

    job = generate(adapter, resources={"host": "shared"})
    run = Run(tmp_path / "job", job, foreseen.floor_bytes)
    run.here()
    assert run.progress["loads"] > run.progress["units"]
    assert run.progress["peak_bytes"] <= foreseen.floor_bytes < MODEL_BYTES
    assert run.progress["model_bytes"] == foreseen.model_bytes
    lines = [json.loads(line) for line in (run.output / "completions.jsonl").read_text().splitlines()]
    expected = by_peft(base, adapter)
    assert [line["completion"] for line in lines] == expected
    assert len(set(expected)) > 2
    assert expected != by_peft(base, None)


def test_answers_are_pefts_own(base: Path, adapter: Path, tmp_path: Path) -> None:
    job = {
        "kind": "serve", "name": "s", "model": {"source": str(adapter)},
        "serve": {"context": 64, "max_requests": 2, "max_tokens": 12, "end_after": "2s"},
    }  # fmt: skip
    run = Run(tmp_path / "job", job, BUDGET)

    def answer(client: httpx.Client, prompt: str) -> str:
        asked = {"model": "s", "prompt": prompt, "temperature": 0}
        return client.post("/v1/completions", json=asked).json()["choices"][0]["text"]

    answers = run.asked(lambda client: [answer(client, prompt) for prompt in PROMPTS])
    assert answers == by_peft(base, adapter)
    assert run.progress["loads"] > run.progress["units"]
    assert run.progress["peak_bytes"] <= BUDGET < MODEL_BYTES


@pytest.mark.parametrize("whole", [True, False], ids=["language model", "encoder"])
def test_vectors_are_those_of_the_adapted_model(
    whole: bool, base: Path, adapter: Path, tmp_path: Path
) -> None:
    bare = transformers.AutoModel.from_pretrained(base)
    if not whole:  # trained as an encoder, without a head
        torch.manual_seed(4)
        config = peft.LoraConfig(task_type="FEATURE_EXTRACTION", r=4, target_modules=["q_proj", "down_proj"])
        adapted = peft.get_peft_model(bare, config)
        for parameter in adapted.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter) * parameter.requires_grad)
        adapted.save_pretrained(tmp_path)
        adapted = peft.PeftModel.from_pretrained(transformers.AutoModel.from_pretrained(base), tmp_path)
        model = adapted.get_base_model()
    else:
        model = (
            peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), adapter)
            .get_base_model()
            .model
        )
    words = transformers.AutoTokenizer.from_pretrained(base)
    given = words(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        tokens = model.eval()(**given)[0]
    mask = given["attention_mask"].unsqueeze(-1).float()
    expected = (tokens * mask).sum(1) / mask.sum(1)

    source = adapter if whole else tmp_path
    encoder = Encoder(ModelSection(source=str(source)), EmbedSection(texts=("x",)))
    with stream(encoder.model, k=3, weights=encoder.files, poison=True) as streamer:
        for _ in range(2):
            vectors = encoder.encode(encoder.pad(encoder.tokenize(PROMPTS)))
            assert torch.equal(vectors, expected)
        stats = streamer.stats()
    assert stats.peak_units <= 3 < stats.units
    assert stats.loads > stats.units


@pytest.mark.parametrize("kind", ["pissa", "loha"])
def test_an_adapter_that_needs_all_of_its_base_is_used_as_peft_uses_it(
    kind: str, base: Path, tmp_path: Path
) -> None:
    loha = peft.LoHaConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "down_proj"])
    how = {"config": loha} if kind == "loha" else {"init_lora_weights": "pissa"}
    adapter = write_adapter(tmp_path / "adapter", base, **how)
    run = Run(tmp_path / "job", generate(adapter), BUDGET)
    run.here()
    assert run.progress["loads"] > run.progress["units"]
    lines = [json.loads(line) for line in (run.output / "completions.jsonl").read_text().splitlines()]
    assert [line["completion"] for line in lines] == by_peft(base, adapter)


# ---- what cannot be used --------------------------------------------------------------------------------


def with_base(name: str | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": name}))

    return change


def damage(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


def lose(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


@pytest.mark.parametrize(
    ("change", "said", "hint"),
    [
        (
            with_base("/nowhere/base"),
            "the adapter FOLDER is for /nowhere/base, which cannot be loaded",
            "FILE",
        ),
        (with_base(None), "FILE does not say which model it adapts", "base_model_name_or_path in FILE"),
        (damage, "cannot read FILE", "save_pretrained"),
        (lose, "cannot read the weights of the adapter FOLDER", "save_pretrained"),
    ],
    ids=["no base", "nameless", "damaged", "no weights"],
)
def test_a_broken_adapter_is_said_with_its_file(
    change: Callable[[Path], None], said: str, hint: str, adapter: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(adapter, tmp_path / "broken")
    change(folder)
    refused(folder, tmp_path, said, hint)


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
ONE_ALONE = "the adapter FOLDER does not fit LlamaForCausalLM of BASE: base_model.* is in one of them alone"


@pytest.mark.parametrize(
    ("model", "targets", "said"),
    [
        ({"num_hidden_layers": 2}, ["q_proj"], ONE_ALONE),
        ({"num_hidden_layers": 4}, "all-linear", ONE_ALONE),
        ({"intermediate_size": 64}, ["down_proj"], "of BASE: size mismatch for base_model.*down_proj"),
        (
            {"model_type": "gpt_neox", **SMALL},
            ["dense_h_to_4h"],
            "of BASE: .*dense_h_to_4h.* not found",
        ),
    ],
    ids=["fewer layers", "more layers", "another width", "other names"],
)
def test_an_adapter_for_another_model_is_refused(
    model: dict[str, Any], targets: Any, said: str, base: Path, tmp_path: Path
) -> None:
    like_base = transformers.AutoConfig.from_pretrained(base).to_dict()
    config = transformers.AutoConfig.for_model(**(model if "model_type" in model else {**like_base, **model}))
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "other")
    folder = write_adapter(tmp_path / "adapter", tmp_path / "other", target_modules=targets)
    with_base(str(base))(folder)
    refused(folder, tmp_path, said.replace("BASE", str(base)), f"base_model_name_or_path in {folder}")


def test_an_adapter_that_is_in_no_layer_is_refused(base: Path, tmp_path: Path) -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    folder = write_adapter(tmp_path / "adapter", base, config)
    refused(folder, tmp_path, "FOLDER is an adapter of the kind PROMPT_TUNING, which is in no layer", "LoRA")


def refused(folder: Path, tmp_path: Path, said: str, hint: str) -> None:
    def stream(*_: Any, **__: Any) -> None:
        raise AssertionError("it begins")

    main = runpy.run_path(str(bundled.worker_path("generate")))["main"]
    with pytest.raises(BadInput) as caught:
        main(SimpleNamespace(spec=spec.parse(generate(folder)), output=tmp_path / "output", stream=stream))
    named = {"FOLDER": str(folder), "FILE": str(folder / "adapter_config.json")}
    for word, path in named.items():
        said, hint = said.replace(word, path), hint.replace(word, path)
    assert caught.match(said)
    assert caught.value.message.startswith("model.source: ")
    assert hint in str(caught.value.hint)
