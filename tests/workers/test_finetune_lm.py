"""The worker `finetune_lm` through its door: the bits of PEFT, transformers and torch alone, whatever happens to it."""

from __future__ import annotations

import csv
import json
import os
import re
import runpy
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from finetuning.bases import MARKED, conversations, write_adapter, write_base, write_rows
from plain_runs.finetuning import LORA, SETTINGS, Batch, Plain, collated, flattened, tokenized
from streaming.home_programs import bytes_of_copies, copies_of
from streaming.twins import assert_equal
from superpipe_cluster import bundled, spec
from superpipe_cluster.errors import BadInput
from superpipe_cluster.execution.supervisor import Grace
from superpipe_cluster.finetuning.sequences import best_fit
from superpipe_cluster.head.shared_copies import shared_copy_of
from superpipe_cluster.planning.model_plan import probe_of_job, recorded
from superpipe_cluster.planning.profile import plan_of
from waiting import wait_until
from worker_runs import Run

pytestmark = [
    pytest.mark.timeout(300),
    # What PEFT and its callees say about each other.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.* is deprecated:FutureWarning"),
]

MODEL_BYTES = 3_690_000
BUDGET = 3_200_000
WHOLE_BUDGET = 3_600_000  # where all weights are trained


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"), layers=5, template=MARKED)


def job_file(base: Path, data: dict[str, Any], finetune: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "kind": "finetune", "name": "f", "model": {"source": str(base)}, "data": data,
        "finetune": {**SETTINGS, **finetune}, "streaming": {"activations": "recompute"}, **more,
    }  # fmt: skip


# ---- the same bits -------------------------------------------------------------------------------------


def test_a_killed_lora_run_on_packed_chats_has_the_bytes_of_peft(base: Path, tmp_path: Path) -> None:
    rows = conversations(32)
    train, held_out = rows[:26], rows[26:]
    data = {
        "files": [str(write_rows(tmp_path / "train.jsonl", train))],
        "eval_files": [str(write_rows(tmp_path / "held_out.jsonl", held_out))],
        "packing": True,
    }
    words = transformers.AutoTokenizer.from_pretrained(base)

    def packs(rows: list[dict[str, Any]]) -> tuple[int, Callable[[list[int]], Batch]]:
        examples = tokenized(words, rows)
        bins = best_fit([len(ids) for ids, _ in examples], 96)

        def batch(chosen: list[int]) -> Batch:
            packed = [[examples[one] for one in bins[number]] for number in chosen]
            width = max(sum(len(ids) for ids, _ in one) for one in packed)
            parts = zip(*(flattened(one, width, words.eos_token_id) for one in packed), strict=True)
            return dict(zip(("input_ids", "labels", "position_ids"), map(torch.tensor, parts), strict=True))

        return len(bins), batch

    plain = Plain(base, lora={})
    (count, batch), (count_held, batch_held) = packs(train), packs(held_out)
    assert 1 < count < len(train)
    held = [batch_held([number]) for number in range(count_held)]
    plain.train(batch, count, 6, schedule="cosine", warmup=2, held_out=held, eval_every=2)

    asked = {"steps": 6, "schedule": "cosine", "warmup_steps": 2, "eval_every": 2, "lora": LORA}
    run = Run(tmp_path / "job", job_file(base, data, {**asked, "report_to": ["tensorboard"]}), BUDGET)
    run.kill_at(run.start(), 3)
    run.here()
    assert "resumed at step 2, attempt 2" in run.log()
    assert run.progress["steps"] == spec.parse(run.attempt.job).steps == 6
    assert BUDGET < MODEL_BYTES <= run.progress["model_bytes"]
    assert run.progress["loads"] > run.progress["units"]
    assert 0 < run.progress["peak_bytes"] <= BUDGET
    assert run.progress["metrics"]["loss"] == plain.losses[-1]
    assert run.progress["metrics"]["eval_loss"] == plain.evaluations[-1]

    name = "adapter_model.safetensors"
    assert (run.output / "last" / name).read_bytes() == plain.saved(tmp_path / "last")
    assert (run.output / "best" / name).read_bytes() == plain.saved(tmp_path / "best", plain.best)
    assert curve(run.output / "tensorboard", "eval_loss")[6] == pytest.approx(plain.evaluations[-1])

    tokens = torch.arange(20).reshape(2, 10)
    fresh = transformers.AutoModelForCausalLM.from_pretrained(base)
    adapted = peft.PeftModel.from_pretrained(fresh, run.output / "last").eval()
    with torch.no_grad():
        assert_equal(plain.model.eval()(tokens).logits, adapted(tokens).logits)


def weights_in(folder: Path) -> list[tuple[str, torch.Tensor]]:
    return sorted(load_file(folder / "model.safetensors").items())


def curve(folder: Path, name: str) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def test_full_fine_tuning_stops_early_with_the_bits_of_torch(base: Path, tmp_path: Path) -> None:
    words = transformers.AutoTokenizer.from_pretrained(base)
    pairs = [(f"{number} plus {number} is ", str(2 * number)) for number in range(24)]
    for name, part in (("train", pairs[:18]), ("held_out", pairs[18:])):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("question", "answer"), *part])
    data = {
        "files": [str(tmp_path / "train.csv")], "eval_files": [str(tmp_path / "held_out.csv")],
        "columns": {"prompt": "question", "completion": "answer"}, "as_chat": False,
    }  # fmt: skip

    def features(part: list[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        ids = [(words.encode(prompt), [*words.encode(answer), words.eos_token_id]) for prompt, answer in part]
        return [(prompt + answer, [-100] * len(prompt) + answer) for prompt, answer in ids]

    train, held_out = features(pairs[:18]), features(pairs[18:])
    plain = Plain(base)
    held = [collated([one], words) for one in held_out]
    plain.train(
        lambda chosen: collated([train[one] for one in chosen], words), 18, 20,
        schedule="constant_with_warmup", held_out=held, patience=2,
    )  # fmt: skip
    steps = len(plain.losses)
    assert 2 < steps < 20, "it got worse, twice in a row"

    asked = {"method": "full", "epochs": 4, "schedule": "constant", "eval_every": 1, "patience": 2}
    run = Run(tmp_path / "job", job_file(base, data, asked), WHOLE_BUDGET)
    run.here()
    assert run.progress["step"] == steps
    assert "stopped early" in run.log()
    assert run.progress["loads"] > run.progress["units"]
    assert run.progress["peak_bytes"] <= WHOLE_BUDGET < MODEL_BYTES
    assert run.progress["metrics"]["eval_loss"] == plain.evaluations[-1]
    assert_equal(weights_in(run.output / "last"), sorted(plain.model.state_dict().items()))
    assert_equal(weights_in(run.output / "best"), sorted(plain.best.items()))

    tokens = torch.arange(20).reshape(2, 10)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(run.output / "last").eval()
    with torch.no_grad():
        assert_equal(plain.model.eval()(tokens).logits, loaded(tokens).logits)

    run.here()  # started again after its end, it stays ended
    assert run.progress["step"] == steps
    assert_equal(weights_in(run.output / "last"), sorted(plain.model.state_dict().items()))


def test_three_jobs_at_once_have_one_host_copy_of_their_base(base: Path, tmp_path: Path) -> None:
    rows = conversations(8)
    data = {"files": [str(write_rows(tmp_path / "train.jsonl", rows))]}
    words = transformers.AutoTokenizer.from_pretrained(base)
    examples = tokenized(words, rows)
    model, asked = {"source": str(base), "dtype": "bfloat16"}, {"steps": 6, "batch_size": 2, "lora": LORA}
    runs = [
        Run(tmp_path / str(seed), job_file(base, data, {**asked, "seed": seed}, model=model), BUDGET)
        for seed in (1, 2, 3)
    ]
    supervisors = [run.start(Grace(sleep_s=600)) for run in runs]  # they stand still below
    with ThreadPoolExecutor(3) as pool:  # whoever is first does not wait for the others, or it would be over
        pids = list(pool.map(hold_after_a_step, runs, supervisors))

    frozen = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    base_bytes = sum(parameter.nbytes for parameter in frozen.parameters())
    first, second, third = (copies_of(pid) for pid in pids)
    assert first == second == third, "the same memory"
    measured = bytes_of_copies(pids[0])
    assert base_bytes <= measured <= base_bytes + len(first) * os.sysconf("SC_PAGE_SIZE")
    # What the ledger books once for all three.
    jobs = [spec.parse(run.attempt.job) for run in runs]
    plan = plan_of(recorded(probe_of_job(jobs[0]), activations="recompute"), cuda=False)
    booked = {shared_copy_of(job, plan) for job in jobs}
    assert len(booked) == 1
    assert 0 <= measured - booked.pop()[1] <= len(first) * os.sysconf("SC_PAGE_SIZE")
    # The kernel's own account: a page that three have mapped counts a third in each.
    assert sum(proportional_bytes(pid) for pid in pids) <= measured

    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    for run, supervisor in zip(runs, supervisors, strict=True):
        assert run.finish(supervisor).reason == "ok", run.log()
        shared = re.search(r"(\d+) MiB of weights, (\d+) MiB of them shared", run.log())
        assert shared is not None
        assert int(shared[2]) == round(base_bytes / 2**20)
        assert run.progress["loads"] > run.progress["units"]
        assert run.progress["peak_bytes"] <= BUDGET
    for seed, run in zip((1, 2, 3), runs, strict=True):
        plain = Plain(base, seed, torch.bfloat16, 2, lora={})
        plain.train(lambda chosen: collated([examples[one] for one in chosen], words), 8, 6)
        expected = plain.saved(tmp_path / f"plain-{seed}")
        assert (run.output / "last" / "adapter_model.safetensors").read_bytes() == expected


def test_dora_and_whole_modules_have_the_bits_of_peft_after_a_stop(base: Path, tmp_path: Path) -> None:
    rows = conversations(8)
    data = {"files": [str(write_rows(tmp_path / "train.jsonl", rows))]}
    words = transformers.AutoTokenizer.from_pretrained(base)
    examples = tokenized(words, rows)
    whole = ["lm_head", "embed_tokens"]
    plain = Plain(base, lora={"use_dora": True, "modules_to_save": whole})
    plain.train(lambda chosen: collated([examples[one] for one in chosen], words), 8, 5)

    asked = {"steps": 5, "lora": {**LORA, "dora": True, "modules_to_save": whole}}
    run = Run(tmp_path / "job", job_file(base, data, asked), WHOLE_BUDGET)
    run.here(stop_at=3)
    run.here()
    assert "resumed at step 3, attempt 2" in run.log()
    assert run.progress["loads"] > run.progress["units"]
    assert run.progress["peak_bytes"] <= WHOLE_BUDGET < MODEL_BYTES
    assert run.progress["metrics"]["loss"] == plain.losses[-1]
    expected = plain.saved(tmp_path / "plain")
    assert (run.output / "last" / "adapter_model.safetensors").read_bytes() == expected
    names = load_file(run.output / "last" / "adapter_model.safetensors").keys()
    assert any("lora_magnitude_vector" in name for name in names)
    assert "base_model.model.model.embed_tokens.weight" in names


def test_an_adapter_is_trained_further_and_merged_where_all_weights_are_trained(
    base: Path, tmp_path: Path, program: Any
) -> None:
    rows = conversations(8)
    data = {"files": [str(write_rows(tmp_path / "train.jsonl", rows))]}
    words = transformers.AutoTokenizer.from_pretrained(base)
    examples = tokenized(words, rows)
    adapter = write_adapter(tmp_path / "adapter", base, lora_dropout=0.1)
    model = {"source": str(adapter)}

    def trained(**how: Any) -> Plain:
        plain = Plain(base, adapter=adapter, **how)
        plain.train(lambda chosen: collated([examples[one] for one in chosen], words), 8, 3)
        return plain

    run = Run(tmp_path / "further", job_file(base, data, {"steps": 3}, model=model), BUDGET)
    run.here()
    assert run.progress["loads"] > run.progress["units"]
    assert run.progress["peak_bytes"] <= BUDGET
    assert f"trains the adapter {adapter} further" in run.log()
    expected = trained().saved(tmp_path / "plain")
    assert (run.output / "last" / "adapter_model.safetensors").read_bytes() == expected
    written = json.loads((run.output / "last" / "adapter_config.json").read_text())
    assert (written["base_model_name_or_path"], written["r"]) == (str(base), 4)
    assert "tokenizer.json" in {path.name for path in (run.output / "last").iterdir()}

    merged = job_file(base, data, {"steps": 3, "method": "full"}, model=model)
    run = Run(tmp_path / "merged", merged, WHOLE_BUDGET)
    run.here(stop_at=2)
    run.here()
    assert "resumed at step 2, attempt 2" in run.log()
    assert run.progress["peak_bytes"] <= WHOLE_BUDGET
    assert_equal(weights_in(run.output / "last"), sorted(trained(merge=True).model.state_dict().items()))

    other = job_file(base, data, {"lora": {"r": 8}}, model=model)
    refused = refusal(program, other, tmp_path / "output")
    assert refused.message.startswith(f"finetune.lora.r: 8, but the adapter {adapter} has 4")
    maker = spec.parse(job_file(base, data, {"lora": LORA}))
    before_it_is_there = spec.parse({**other, "model": {"source": "job:f"}}).over(maker)
    with pytest.raises(BadInput, match=r"finetune\.lora\.r: 8, but the adapter in model\.source has 4"):
        recorded(probe_of_job(before_it_is_there))


def hold_after_a_step(run: Run, supervisor: Any) -> int:
    """Let a job stand still once it has done a step; its process."""

    def is_there() -> bool:
        run.progress.update(supervisor.take_progress())
        return run.progress.get("step", 0) >= 1 or supervisor.wait(0) is not None

    wait_until(is_there, "a step is done", 100)
    assert supervisor.wait(0) is None, run.log()
    pid = int(run.folder.pid.read_text().split()[0])
    os.kill(pid, signal.SIGSTOP)
    return pid


def proportional_bytes(pid: int) -> int:
    """A process's part of the shared copies that it has mapped."""
    total, inside = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = "/memfd:superpipe_cluster:" in line
        elif inside and line.startswith("Pss:"):
            total += int(line.split()[1]) * 1024
    return total


# ---- what cannot be trained ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program() -> Callable[[Any], None]:
    return runpy.run_path(str(bundled.worker_path("finetune_lm")))["main"]


def refusal(program: Callable[[Any], None], job: dict[str, Any], output: Path, **more: Any) -> BadInput:
    """What the program says about a job, before it streams anything."""

    def stream(*_: Any, **__: Any) -> None:
        raise AssertionError("the training begins")

    given = {"latest_checkpoint": lambda: None, "log": lambda _: None, "stream": stream, **more}
    with pytest.raises(BadInput) as caught:
        program(SimpleNamespace(spec=spec.parse(job), output=output, id="1", name="f", **given))
    assert caught.value.hint
    return caught.value


ROW = {"prompt": "a", "completion": "b"}


@pytest.mark.parametrize(
    ("rows", "data", "finetune", "said"),
    [
        ([], {}, {}, "data.files: no example in .*rows.jsonl"),
        ([{"q": "a"}], {}, {}, "rows.jsonl, row 1: the columns q are none of"),
        ([ROW], {"rows": "messages"}, {}, "rows.jsonl, row 1: nothing in the column 'messages'"),
        ([ROW, {**ROW, "completion": "b" * 999}], {}, {}, r"rows.jsonl, row 2: \d+ tokens are more than .* 96"),
        ([ROW], {}, {"sequence_length": 500}, "finetune.sequence_length: 500 tokens are more than the 128"),
        ([ROW], {}, {"lora": {"target_modules": ["nowhere"]}}, "finetune.lora: cannot adapt LlamaForCausalLM"),
        ([ROW], {}, {"lora": {"modules_to_save": ["nowhere"]}}, "modules_to_save: no module of Llama.* is called"),
        ([ROW], {"eval_fraction": 0.5}, {}, "data.eval_fraction: there is only one row"),
    ],
    ids=["empty", "column", "kind", "long", "positions", "layers", "modules", "split"],
)  # fmt: skip
def test_what_cannot_be_trained_is_said_before_training(
    rows: Any, data: Any, finetune: Any, said: str, program: Any, base: Path, tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "rows.jsonl", rows)
    job = job_file(base, {"files": [str(file)], **data}, finetune)
    assert re.search(said, refusal(program, job, tmp_path / "output").message)


def test_what_is_missing_around_the_data_is_said_before_training(
    program: Any, base: Path, tmp_path: Path
) -> None:
    data = {"files": [str(write_rows(tmp_path / "rows.jsonl", [ROW]))]}
    job = job_file(base, data, {})
    (tmp_path / "file").touch()
    assert "output: cannot write" in refusal(program, job, tmp_path / "file" / "output").message

    chat = write_rows(tmp_path / "chat.jsonl", conversations(1))
    bytes_only = {**job, "model": {**job["model"], "tokenizer": "bytes"}, "data": {"files": [str(chat)]}}
    assert "chat.jsonl, row 1: a conversation, and the tokenizer has no chat template" in str(
        refusal(program, bytes_only, tmp_path / "output")
    )
    nowhere = {**job, "model": {**job["model"], "tokenizer": "/nowhere"}}
    assert "model.tokenizer: cannot load /nowhere" in refusal(program, nowhere, tmp_path / "output").message
    wandb = job_file(base, data, {"report_to": ["wandb"]})
    assert "pip install wandb" in str(refusal(program, wandb, tmp_path / "output").hint)

    broken = tmp_path / "step-1"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"no")
    found = refusal(program, job, tmp_path / "output", latest_checkpoint=lambda: broken)
    assert str(broken / "model.safetensors") in found.message
