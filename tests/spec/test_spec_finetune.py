"""`kind: finetune` in a job file: its files, its defaults, and what does not go together."""

from __future__ import annotations

from pathlib import Path

import pytest

from superpipe_cluster import spec
from superpipe_cluster.errors import FileMissing, JobFileError
from superpipe_cluster.spec import FinetuneJob

MODEL = "model: {source: org/model}\n"
DATA = "data: {files: [rows.jsonl]}\n"
FINETUNE = "finetune: {}\n"


def load(folder: Path, text: str) -> FinetuneJob:
    path = folder / "job.yaml"
    path.write_text("kind: finetune\n" + text, encoding="utf-8")
    job = spec.load(path)
    assert isinstance(job, FinetuneJob)
    return job


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("rows.jsonl", "held_out.csv", "chat.jinja"):
        (tmp_path / name).write_text("x", encoding="utf-8")
    return tmp_path


def test_an_adapter_on_a_shared_base_is_the_default(folder: Path) -> None:
    job = load(folder, MODEL + DATA + FINETUNE)
    assert job.finetune is not None
    assert (job.finetune.method, job.finetune.lora.target_modules) == ("lora", "all-linear")
    assert job.host == "shared"
    assert spec.parse(spec.dump(job)) == job
    for section, host in (
        ("finetune: {method: full}\n", "pinned"),
        ("finetune: {share_base: false}\n", "pinned"),
        ("finetune: {}\nresources: {host: disk}\n", "disk"),
        ("finetune: {method: full, lora: {r: 4}}\nresources: {host: shared}\n", "shared"),
    ):
        job = load(folder, MODEL + DATA + section)
        assert job.host == host
        assert spec.parse(spec.dump(job)) == job


def test_its_files_are_found_beside_the_job_file(folder: Path) -> None:
    data = "data: {files: ['*.jsonl'], eval_files: [held_out.csv], chat_template: chat.jinja, columns: {text: 1}}\n"
    job = load(folder, MODEL + data + FINETUNE)
    assert job.data is not None
    assert job.data.chat_template == str(folder / "chat.jinja")
    assert job.data.columns == {"text": "1"}, "a column may be called 1"
    assert {path.name for path in job.local_files()} == {"rows.jsonl", "held_out.csv", "chat.jinja"}
    for name in ("held_out.csv", "chat.jinja"):
        with pytest.raises((FileMissing, JobFileError), match=f"no such file: .*/no-{name}"):
            load(folder, MODEL + data.replace(name, f"no-{name}") + FINETUNE)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MODEL + DATA, "finetune: missing, worker finetune_lm needs it"),
        (MODEL + DATA + "finetune: {patience: 2}\n", "finetune.patience: nothing is held out"),
        (MODEL + DATA + "finetune: {steps: 3, warmup_steps: 4}\n", "warms up for 4 steps, but there are only 3"),
        (MODEL + DATA + "finetune: {method: full, share_base: true}\n", "finetune.share_base: there is no frozen base"),
        (
            MODEL + DATA + "finetune: {share_base: true}\nresources: {host: disk}\n",
            "resources.host: disk, but finetune.share_base shares the base",
        ),
        ("model: {source: a/b, dtype: float16}\n" + DATA + FINETUNE, "model.dtype: float16 overflows"),
        (
            MODEL + "data: {files: [rows.jsonl], eval_files: [held_out.csv], eval_fraction: 0.1}\n" + FINETUNE,
            "data.eval_fraction: given beside eval_files",
        ),
        (MODEL + "data: {files: [rows.jsonl], columns: {promt: q}}\n" + FINETUNE, "data.columns.promt: not a column"),
        (MODEL + "data: {files: [rows.jsonl], eval_fraction: 1}\n" + FINETUNE, "data.eval_fraction: must be less"),
        (MODEL + DATA + "finetune: {report_to: [tensorbord]}\n", "finetune.report_to[0]: expected one of tensorboard"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_said_at_its_place(text: str, said: str, folder: Path) -> None:
    with pytest.raises(JobFileError) as caught:
        load(folder, text)
    assert len(caught.value.problems) == 1
    assert said in caught.value.problems[0]
