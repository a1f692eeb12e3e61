"""The files that a job names: made absolute, expanded, and missed with their place."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from superpipe_cluster import spec
from superpipe_cluster.errors import FileMissing, JobFileError

TRAIN = "kind: train\nmodel: {config: {model_type: llama}}\ntrain: {steps: 1}\n"


def job_file(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text", encoding="utf-8")


def test_relative_paths_start_at_the_job_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = tmp_path / "jobs"
    touch(jobs / "prompts.txt", jobs / "mine.py", jobs / "llama" / "config.json")
    job_file(
        jobs,
        "kind: generate\nworker: mine.py\nmodel: {source: llama, tokenizer: ./llama}\n"
        "generate: {prompts: prompts.txt}\noutput: ../results\n",
    )
    monkeypatch.chdir(tmp_path)
    job = spec.load("jobs/job.yaml")
    assert isinstance(job, spec.GenerateJob)
    assert job.generate is not None
    assert job.model is not None
    assert job.own_program == jobs / "mine.py"
    assert job.generate.prompts == str(jobs / "prompts.txt")
    assert job.model.source == job.model.tokenizer == str(jobs / "llama")
    assert job.output == str(tmp_path / "results")
    assert job.local_files() == [jobs / "mine.py", jobs / "prompts.txt", jobs / "llama"]


def test_globs_are_expanded_in_their_order_each_file_once(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    touch(texts / "b.txt", texts / "a.txt", texts / "deep" / "c.txt", texts / "d.md", tmp_path / "e.jsonl")
    files = "[e.jsonl, 'texts/*.txt', 'texts/**/*.txt']"
    job = spec.load(job_file(tmp_path, TRAIN + f"data: {{files: {files}}}\n"))
    assert isinstance(job, spec.TrainJob)
    assert job.data is not None
    assert [path.relative_to(tmp_path).as_posix() for path in job.data.paths()] == [
        "e.jsonl",
        "texts/a.txt",
        "texts/b.txt",
        "texts/deep/c.txt",
    ]
    assert job.local_files() == job.data.paths()


def test_brackets_in_names_are_no_globs(tmp_path: Path) -> None:
    folder = tmp_path / "run [1]"
    touch(folder / "notes[1].txt", folder / "a.txt")
    job = spec.load(job_file(folder, TRAIN + "data: {files: ['notes[1].txt', '[a].txt']}\n"))
    assert job.local_files() == [folder / "notes[1].txt", folder / "a.txt"]


def test_the_standard_library_is_found_where_python_runs(tmp_path: Path) -> None:
    job = spec.load(job_file(tmp_path, TRAIN + "data: {files: ['python-stdlib:']}\n"))
    assert isinstance(job, spec.TrainJob)
    assert job.data is not None
    stdlib = Path(sysconfig.get_path("stdlib"))
    paths = job.data.paths()
    assert stdlib / "json" / "decoder.py" in paths
    assert not any("site-packages" in path.parts for path in paths)
    assert job.local_files() == [], "every machine has its own"


def test_a_glob_in_the_standard_library(tmp_path: Path) -> None:
    job = spec.load(job_file(tmp_path, TRAIN + "data: {files: ['python-stdlib:json/*.py']}\n"))
    assert isinstance(job, spec.TrainJob)
    assert job.data is not None
    assert {path.parent.name for path in job.data.paths()} == {"json"}


@pytest.mark.parametrize("source", ["meta/llama", "gpt2", "job:alice", "job:3", "x" * 300])
def test_hub_names_and_jobs_are_no_paths(tmp_path: Path, source: str) -> None:
    text = f"kind: generate\nmodel: {{source: '{source}'}}\ngenerate: {{prompts: [a]}}\n"
    job = spec.load(job_file(tmp_path, text))
    assert job.model is not None
    assert job.model.source == source
    assert job.local_files() == []


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    touch(tmp_path / "home" / "a.txt")
    job = spec.load(job_file(tmp_path, TRAIN + "data: {files: [~/a.txt]}\n"))
    assert job.local_files() == [tmp_path / "home" / "a.txt"]


@pytest.mark.parametrize(
    ("files", "message", "hint"),
    [
        ("[a.txt]", "16: data.files[0]: no such file: {dir}/a.txt", "did you mean {dir}/b.txt?"),
        (
            "[x/a.txt]",
            "16: data.files[0]: no such file: {dir}/x/a.txt",
            "there is no folder {dir}/x to look in",
        ),
        ("['*.md']", "16: data.files[0]: no file matches {dir}/*.md", "** stands for folders in folders"),
        ("[b.txt, '*.md']", "23: data.files[1]: no file matches {dir}/*.md", "** stands for folders"),
        ("[texts]", "16: data.files[0]: {dir}/texts is a folder", "{dir}/texts/**/*.txt"),
        ("['python-stdlib:x/*']", "16: data.files[0]: no file matches python-stdlib:x/*", "**"),
    ],
)
def test_missing_data_is_located(tmp_path: Path, files: str, message: str, hint: str) -> None:
    touch(tmp_path / "b.txt", tmp_path / "texts" / "c.txt")
    path = job_file(tmp_path, TRAIN + f"data: {{files: {files}}}\n")
    with pytest.raises(FileMissing) as caught:
        spec.load(path)
    assert caught.value.message == f"{path}:4:{message.format(dir=tmp_path)}"
    assert hint.format(dir=tmp_path) in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("worker: ./mine.py", "9: worker: no such file: {dir}/mine.py"),
        ("worker: texts/", "9: worker: {dir}/texts is a folder"),
        ("output: b.txt", "9: output: {dir}/b.txt is a file"),
    ],
)
def test_missing_programs_and_impossible_outputs_are_located(
    tmp_path: Path, field: str, message: str
) -> None:
    touch(tmp_path / "b.txt", tmp_path / "texts" / "c.txt")
    path = job_file(tmp_path, TRAIN + f"data: {{files: [b.txt]}}\n{field}\n")
    with pytest.raises(FileMissing) as caught:
        spec.load(path)
    assert caught.value.message == f"{path}:5:{message.format(dir=tmp_path)}"


def test_a_missing_model_folder_is_located_in_its_override(tmp_path: Path) -> None:
    path = job_file(tmp_path, "kind: generate\nmodel: {}\ngenerate: {prompts: [a]}\n")
    with pytest.raises(FileMissing) as caught:
        spec.load(path, ["model.source=./nothing"])
    assert caught.value.message == f"--set model.source: no such folder: {tmp_path}/nothing"


def test_several_missing_files_come_in_one_error(tmp_path: Path) -> None:
    with pytest.raises(FileMissing) as caught:
        spec.load(job_file(tmp_path, TRAIN + "data: {files: [a.txt, b.txt]}\n"))
    assert [line.split(": ")[1] for line in caught.value.message.splitlines()] == [
        "data.files[0]",
        "data.files[1]",
    ]


def test_missing_files_are_shown_with_other_mistakes(tmp_path: Path) -> None:
    with pytest.raises(JobFileError) as caught:
        spec.load(job_file(tmp_path, TRAIN + "data: {files: [a.txt]}\noutputs: x\n"))
    assert [problem.split(": ")[1] for problem in caught.value.problems] == ["data.files[0]", "outputs"]


def test_files_that_vanish_after_loading_are_missed(tmp_path: Path) -> None:
    touch(tmp_path / "a.txt")
    job = spec.load(job_file(tmp_path, TRAIN + "data: {files: ['*.txt']}\n"))
    (tmp_path / "a.txt").unlink()
    with pytest.raises(FileMissing, match=r"data\.files\[0\]: no file matches"):
        job.local_files()
    assert isinstance(job, spec.TrainJob)
    assert job.data is not None
    with pytest.raises(FileMissing, match="no file matches"):
        job.data.paths()


def test_a_path_that_no_file_system_takes_is_refused(tmp_path: Path) -> None:
    path = job_file(tmp_path, TRAIN + f"data: {{files: [{'x' * 300}]}}\n")
    with pytest.raises(FileMissing, match=r"data\.files\[0\]"):
        spec.load(path)
