"""Loading job files: what is understood, and that every mistake is shown at its place, all at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from examples import examples
from superpipe_cluster import spec
from superpipe_cluster.errors import FileMissing, JobFileError, SpclusterError
from superpipe_cluster.spec.job import KINDS

Write = Callable[..., Path]

TRAIN = """\
kind: train
model:
  config: {model_type: llama, hidden_size: 64}
data:
  files: ["python-stdlib:json/*.py"]
train:
  steps: 20
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(text: str | bytes, name: str = "train.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_file


def mistakes(path: Path, *overrides: str) -> list[str]:
    """The problems of a job file, with the file's folder cut off."""
    with pytest.raises(JobFileError) as caught:
        spec.load(path, overrides)
    assert caught.value.exit_code == 2
    assert str(len(caught.value.problems)) in caught.value.message
    return [problem.replace(f"{path.parent}/", "") for problem in caught.value.problems]


def test_a_short_file_is_a_whole_job(write: Write) -> None:
    job = spec.load(write(TRAIN, "Alice's Llama.yaml"))
    assert isinstance(job, spec.TrainJob)
    assert (job.kind, job.worker, job.name) == ("train", "train_lm", "alice-s-llama")
    assert job.train is not None
    assert (job.train.steps, job.train.lr, job.train.optimizer) == (20, 3e-4, "adamw")
    assert job.resources.gpu_memory == "auto"
    assert job.resources.host_memory_bytes is None
    assert job.time_limit_s is None
    assert job.own_program is None


def test_units_become_numbers(write: Write) -> None:
    job = spec.load(
        write(TRAIN + "resources: {gpu_memory: 10GiB..24GiB, host_memory: 16GiB}\ntime_limit: 1h30m\n")
    )
    assert job.resources.gpu_memory == spec.ByteRange(10 * 2**30, 24 * 2**30)
    assert job.resources.host_memory_bytes == 16 * 2**30
    assert job.time_limit_s == 5_400


def test_every_mistake_is_shown_at_once_with_line_column_and_hint(write: Write) -> None:
    path = write("""\
kind: train
model:
  sorce: ./llama
data:
  files: texts/*.txt
train:
  steps: ten
  lr: -1
  steps: 30
  optimizer: adam
resources:
  gpu_memory: 12
time_limit: 90
batch_size: 8
""")
    assert mistakes(path) == [
        "train.yaml:3:3: model.sorce: unknown field\n    hint: did you mean `source`?",
        "train.yaml:5:10: data.files: expected a list, got 'texts/*.txt'\n"
        "    hint: write it as a list: [texts/*.txt]",
        "train.yaml:7:10: train.steps: expected a whole number, got 'ten'",
        "train.yaml:8:7: train.lr: must be more than 0, got -1",
        "train.yaml:9:3: train.steps: given twice, first on line 7\n    hint: keep one of the two",
        "train.yaml:10:14: train.optimizer: expected one of adamw, sgd; got 'adam'\n"
        "    hint: did you mean `adamw`?",
        "train.yaml:12:15: resources.gpu_memory: a size needs a unit, got 12\n    hint: write 12GiB or 12MiB",
        "train.yaml:13:13: time_limit: a duration needs a unit, got 90\n    hint: write 90s, 90m or 90h",
        "train.yaml:14:1: batch_size: unknown field\n    hint: did you mean `train.batch_size`?",
    ]


@pytest.mark.parametrize(
    ("kind", "place", "hint"),
    [
        ("kind: trian\n", f"1:7: kind: expected one of {', '.join(KINDS)}; got 'trian'", "`train`"),
        ("", "1:1: kind: missing", "kind: train"),
    ],
)
def test_a_wrong_kind_does_not_hide_the_rest(write: Write, kind: str, place: str, hint: str) -> None:
    found = mistakes(
        write(kind + "model: {config: {model_type: llama}}\ndata: {files: [], x: 1}\ntrain: {steps: 0}\n")
    )
    assert found[0].startswith(f"train.yaml:{place}")
    assert hint in found[0]
    assert [problem.split(": ")[1] for problem in found[1:]] == ["data.files", "data.x", "train.steps"]


def test_a_kind_like_nothing_known_is_the_only_mistake_shown(write: Write) -> None:
    found = mistakes(write("kind: 7\nmodel: {}\n"))
    assert found == [f"train.yaml:1:7: kind: expected one of {', '.join(KINDS)}; got 7"]


MODEL = "config: {model_type: llama, hidden_size: 64}"
GENERATE = "kind: generate\nmodel: {source: a/b}\n"
ONE_MISTAKE = [
    (
        TRAIN.replace(f"model:\n  {MODEL}\n", ""),
        "1:1: model: missing, worker train_lm needs it",
        "write model: {",
    ),
    (GENERATE, "1:1: generate: missing, worker generate needs it", "write generate: {prompts: prompts.txt}"),
    (TRAIN + "generate: {prompts: [a]}\n", "8:1: generate: belongs to kind: generate", "change the kind"),
    (TRAIN + "train_lm: {}\n", "8:1: train_lm: unknown field", "did you mean `train`?"),
    (TRAIN + "zzz: {}\n", "8:1: zzz: unknown field", "known here: kind, name, worker"),
    (TRAIN + "streaming: {steps: 2}\n", "8:13: streaming.steps: unknown field", "`train.steps`"),
    (
        TRAIN + "streaming: {name: 2}\n",
        "8:13: streaming.name: unknown field",
        "`name` belongs at the top level",
    ),
    (TRAIN.replace("train:", "trian:"), "6:1: trian: unknown field", "did you mean `train`?"),
    (TRAIN.replace("steps: 20", "seed: 1"), "6:1: train.steps: missing", "Optimizer steps to make."),
    (TRAIN.replace("steps: 20", "steps: true"), "7:10: train.steps: expected a number, got true", ""),
    (TRAIN.replace("steps: 20", "steps: 2.5"), "7:10: train.steps: expected a whole number, got 2.5", ""),
    (TRAIN.replace("steps: 20", "steps:"), "7:9: train.steps: expected a whole number, got nothing", ""),
    (TRAIN.replace("steps: 20", "steps: 0"), "7:10: train.steps: must be at least 1, got 0", ""),
    (TRAIN.replace("  steps: 20", "  20"), "7:3: train: expected fields under it, got 20", ""),
    (TRAIN + "  warmup_steps: 21\n", "8:17: train.warmup_steps: warms up for 21 steps, but there are", ""),
    (TRAIN + "  lr: .inf\n", "8:7: train.lr: expected a number, got '.inf'", ""),
    (TRAIN + "  lr: nan\n", "8:7: train.lr: expected a number, got 'nan'", ""),
    (TRAIN + "  lr: 1e999\n", "8:7: train.lr: '1e999' cannot be read as a number", ""),
    (TRAIN + f"  lr: {'9' * 5000}\n", "8:7: train.lr: '99999", ""),
    (
        TRAIN + "  lr: !!python/name:os.system\n",
        "8:7: train.lr: YAML tags are not supported",
        "a plain value",
    ),
    (
        TRAIN + "  optimizer_on: gpu\n",
        "8:17: train.optimizer_on: expected one of device, host; got 'gpu'",
        "",
    ),
    (TRAIN + "  ? [a]\n  : b\n", "8:5: train: the name of a field must be a plain word", ""),
    (TRAIN.replace(MODEL, "seed: 0"), "2:1: model: neither a source nor a config is given", "write source:"),
    (
        TRAIN.replace(MODEL, f"source: a/b\n  {MODEL}"),
        "4:3: model.config: given beside a source",
        "remove one",
    ),
    (
        TRAIN.replace("model_type", "model_typ"),
        "3:3: model.config: lacks the model_type",
        "model_type: llama",
    ),
    (TRAIN.replace(MODEL, "source: 'job:'"), "3:11: model.source: names no job", "name of a job"),
    (TRAIN.replace(MODEL, "config: llama"), "3:11: model.config: expected fields under it, got 'llama'", ""),
    (TRAIN.replace('["python-stdlib:json/*.py"]', "[]"), "5:10: data.files: expected at least one entry", ""),
    (
        GENERATE + "generate: {prompts: []}\n",
        "3:21: generate.prompts: expected a file of prompts",
        "prompts.txt",
    ),
    (GENERATE + "generate: {prompts: [a, [b]]}\n", "3:21: generate.prompts: expected a file of prompts", ""),
    (TRAIN + "name: My Job\n", "8:7: name: 'My Job' cannot be a job's name", "underscores: my-job"),
    (TRAIN + "after:\n  - first\n  - [x]\n", "10:5: after[1]: expected a text, got a list", ""),
    (TRAIN + "after: {okay: x}\n", "8:9: after.okay: unknown field", "did you mean `ok`?"),
    (
        TRAIN + "after: {ok: [a], fail: a}\n",
        "8:24: after.fail: a cannot both succeed and fail",
        "one of ok and",
    ),
    (TRAIN + "array: 16\n", "8:8: array: 16 could be an index or a count", "write 0-15 for 16 tasks"),
    (TRAIN + "array: 9-0\n", "8:8: array: 9-0 runs backwards", "write 0-9"),
    (TRAIN + "elastic: {shrink: yes}\n", "8:19: elastic.shrink: expected true or false, got 'yes'", ""),
    (TRAIN + "elastic: {max_slowdown: 0.5}\n", "8:25: elastic.max_slowdown: must be at least 1, got 0.5", ""),
    (TRAIN + "elastic: off\n", "8:10: elastic: expected fields under it, got 'off'", ""),
    (TRAIN + "max_slowdown: 2\n", "8:1: max_slowdown: unknown field", "`elastic.max_slowdown`"),
    (TRAIN + "not_before: 2026-11-22T22:00\n", "8:1: not_before: unknown field", "`schedule.not_before`"),
    (
        TRAIN + "schedule: {at_end: stop}\n",
        "8:20: schedule.at_end: expected one of shrink, pause, requeue",
        "",
    ),
    (
        TRAIN + "schedule: {window: My Nights}\n",
        "8:20: schedule.window: 'My Nights' cannot be a window",
        "my-nights",
    ),
    (
        TRAIN + "schedule: {not_before: 2026-11-22}\n",
        "8:24: schedule.not_before: 2026-11-22 lacks",
        "2026-11-22T22:00",
    ),
    (
        TRAIN + "schedule: {not_before: 22:00}\n",
        "8:24: schedule.not_before: '22:00' is not a point in time",
        "date",
    ),
    (
        TRAIN + "schedule: {not_before: 2026-02-30T22:00}\n",
        "8:24: schedule.not_before: 2026-02-30T22:00 is no",
        "",
    ),
    (TRAIN + "output: 3\n", "8:9: output: expected a text, got 3", 'put it in quotes: "3"'),
    (TRAIN + "output: ''\n", "8:9: output: expected a text, got ''", ""),
    (TRAIN + 'output: "\\ud800"\n', "8:9: output: half of a character", ""),
    (
        TRAIN + "priority: hihg\n",
        "8:11: priority: expected one of low, normal, high, interactive; got 'hihg'",
        "`high`",
    ),
    (TRAIN + "streaming: {k: 2, k_prime: 3}\n", "8:28: streaming.k_prime: a batch of 3 units", ""),
    (TRAIN + "env: {A-B: x}\n", "8:12: env.A-B: not a name for an environment variable", ""),
    (
        TRAIN + "env: {RAY_ADDRESS: x}\n",
        "8:20: env.RAY_ADDRESS: this variable belongs to the cluster",
        "remove",
    ),
    (TRAIN + 'env: {A: "x\\0"}\n', "8:10: env.A: holds a NUL character", ""),
    (TRAIN + "env: {A: [x]}\n", "8:10: env.A: expected a text, got a list", ""),
    (TRAIN + "time_limit: 1:30\n", "8:13: time_limit: '1:30' is not a duration", "1h30m"),
    (TRAIN + "time_limit: 0s\n", "8:13: time_limit: a time limit must be more than zero", "leave it out"),
    (
        TRAIN + "resources: {gpu_memory: 24GiB..10GiB}\n",
        "8:25: resources.gpu_memory: the range runs",
        "10GiB..2",
    ),
    (
        TRAIN + "resources: {host_memory: 0GiB}\n",
        "8:26: resources.host_memory: a memory size must be",
        "auto",
    ),
    (TRAIN + "worker: nope\n", "8:9: worker: there is no worker named 'nope'", "worker: ./mine.py"),
]


@pytest.mark.parametrize(("text", "problem", "hint"), ONE_MISTAKE)
def test_one_mistake_is_said_plainly(write: Write, text: str, problem: str, hint: str) -> None:
    found = mistakes(write(text))
    assert len(found) == 1, found
    assert found[0].startswith(f"train.yaml:{problem}")
    assert hint in found[0].partition("hint: ")[2]


def test_a_program_of_ones_own_needs_no_sections(write: Write) -> None:
    program = write("", "mine.py")
    job = spec.load(write("kind: train\nworker: ./mine.py\nparams: {depth: 3}\n"))
    assert job.own_program == program
    assert job.params == {"depth": 3}
    assert job.model is None


def test_prerequisites_hold_the_job_that_the_model_comes_from(write: Write) -> None:
    job = spec.load(
        write("kind: generate\nmodel: {source: 'job:alice'}\ngenerate: {prompts: [a]}\nafter: [3, alice]\n")
    )
    assert job.prerequisites == ("3", "alice")
    assert job.model is not None
    assert job.model.source_job == "alice"


# ---- overrides ------------------------------------------------------------------------------------------


def test_overrides_change_the_file(write: Write) -> None:
    job = spec.load(
        write(TRAIN),
        [
            "train.steps=5",
            "train.lr=1e-2",
            "name=2026",
            "env.A=yes",
            "resources.gpu_memory=2GiB",
            "data.files=[python-stdlib:re/*.py]",
        ],
    )
    assert isinstance(job, spec.TrainJob)
    assert job.train is not None
    assert (job.train.steps, job.train.lr, job.name, job.env) == (5, 0.01, "2026", {"A": "yes"})
    assert job.resources.gpu_memory == spec.ByteRange(2 * 2**30, 2 * 2**30)
    assert job.data is not None
    assert job.data.files == ("python-stdlib:re/*.py",)


def test_the_last_override_wins_and_null_takes_a_value_back(write: Write) -> None:
    job = spec.load(write(TRAIN + "time_limit: 8h\n"), ["name=a", "name=b", "time_limit=null"])
    assert (job.name, job.time_limit) == ("b", None)


def test_mistakes_in_overrides_come_after_those_of_the_file(write: Write) -> None:
    found = mistakes(
        write(TRAIN + "output: 3\n"),
        "train.steps=ten", "train.stepz=3", "extra.deep=1", "streaming={kk: 1}", "foo", "=3", "a..b=1",
        "train.steps.x=1", "data.files.x=1", "train.lr=[", "model.config.hidden_size=5",
    )  # fmt: skip
    unclosed = ", expected the node content, but found '<stream end>'"
    assert [problem.partition("\n")[0].removesuffix(unclosed) for problem in found] == [
        "train.yaml:8:9: output: expected a text, got 3",
        "--set train.steps: expected a whole number, got 'ten'",
        "--set train.stepz: unknown field",
        "--set extra.deep: extra: unknown field",
        "--set streaming: streaming.kk: unknown field",
        "--set foo: not of the form FIELD=VALUE",
        "--set =3: not of the form FIELD=VALUE",
        "--set a..b=1: not of the form FIELD=VALUE",
        "--set train.steps.x: train.steps: is a value, without fields under it",
        "--set data.files.x: data.files: is a list, set as a whole",
        "--set train.lr: not valid YAML: while parsing a flow node",
    ]


def test_an_override_can_mend_the_file(write: Write) -> None:
    path = write(TRAIN.replace("steps: 20", "steps: ten"))
    assert spec.load(path, ["train.steps=3"]).name == "train"


# ---- files that are no job files --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "1:1: the file is empty\n    hint: start from a ready one: `spcluster examples`"),
        ("# only a comment\n", "1:1: the file is empty"),
        ("- kind: train\n", "1:1: expected fields like `kind: train`, got a list"),
        ("just words\n", "1:1: expected fields like `kind: train`, got a single text"),
        (
            b"kind: train\nname: caf\xe9\n",
            "2:10: byte 0xe9 is not UTF-8 text\n    hint: save the file as UTF-8",
        ),
        ("kind: train\n".encode("utf-16"), "1:1: byte 0xff is not UTF-8 text"),
        ("kind: train\nname: \x00\n", "2:7: character U+0000 is not allowed in YAML"),
        ("kind: train\n\tname: x\n", "2:1: not valid YAML: while scanning for the next token"),
        (
            "kind: train\nname: a: b\n",
            "2:8: not valid YAML: mapping values are not allowed here\n    hint: put",
        ),
        ("kind: train\n  name: a\n", "2:7: not valid YAML: mapping values are not allowed"),
        ("kind: [train\n", "2:1: not valid YAML: while parsing a flow sequence"),
        ("kind: train\n---\nkind: train\n", "2:1: not valid YAML: expected a single document"),
        ("kind: train\nname: *later\n", "2:7: not valid YAML: found undefined alias 'later'"),
        ("&a [*a]\n", "1:1: [0]: the file refers to itself"),
        ("[" * 5000, "1:1: nested too deeply"),
        ("a: " + "x" * 2**20, "1:1: larger than 1 MiB"),
    ],
)
def test_a_file_that_cannot_be_read_says_where(write: Write, content: str | bytes, problem: str) -> None:
    found = mistakes(write(content))
    assert len(found) == 1
    assert found[0].startswith(f"train.yaml:{problem}")


def test_a_small_file_cannot_stand_for_an_endless_one(write: Write) -> None:
    text = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    for level in range(1, 9):
        text += f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n"
    assert "far too large" in mistakes(write(text))[0]


def test_a_missing_job_file_suggests_its_neighbour(write: Write, tmp_path: Path) -> None:
    write(TRAIN)
    with pytest.raises(FileMissing, match="there is no job file") as caught:
        spec.load(tmp_path / "trian.yaml")
    assert "train.yaml" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["no/such/folder.yaml", "x" * 300, "a\0b"])
def test_an_impossible_path_is_a_clear_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileMissing) as caught:
        spec.load(tmp_path / name)
    assert caught.value.hint


def test_a_folder_is_not_a_job_file(write: Write, tmp_path: Path) -> None:
    write(TRAIN)
    with pytest.raises(FileMissing, match="is a folder") as caught:
        spec.load(tmp_path)
    assert "train.yaml" in (caught.value.hint or "")


def test_a_job_file_that_cannot_be_opened_is_a_clear_error(tmp_path: Path) -> None:
    loop = tmp_path / "job.yaml"
    loop.symlink_to(loop)
    with pytest.raises(FileMissing, match="Too many levels"):
        spec.load(loop)


# ---- whatever people write --------------------------------------------------------------------------------

_FIELDS = [
    "kind",
    "train",
    "model",
    "steps",
    "data",
    "files",
    "env",
    "generate",
    "prompts",
    "source",
    "config",
]
_VALUES = [
    "3e-4",
    "08",
    "yes",
    "12GiB",
    "null",
    "python-stdlib:",
    "é",
    '"\\ud800"',
    "!!int x",
    "&a ",
    "*a",
    "\0",
]
_MARKS = ["[", "]", "{", "}", ":", ": ", ": ", "- ", " ", "\n", "\n  ", "\t", "'", '"', "#", "---", "? "]
_WORDS = st.sampled_from([*_FIELDS, *_VALUES, *_MARKS])


@settings(
    max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.lists(_WORDS, max_size=25).map("".join) | st.binary(max_size=60))
def test_no_file_makes_anything_but_a_clear_error(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SpclusterError) as caught:
        spec.load(path)
    assert isinstance(caught.value, JobFileError)
    assert all(problem.startswith(f"{path}:") for problem in caught.value.problems)
