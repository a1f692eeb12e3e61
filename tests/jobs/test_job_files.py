"""Every job file that comes along: its header, its fields, and the bytes that its header promises."""

from __future__ import annotations

import functools
import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

from command_lines import parse_line
from superpipe_cluster import bundled, spec
from superpipe_cluster.execution.attempt import Attempt
from superpipe_cluster.execution.layout import JobFolder
from superpipe_cluster.execution.supervisor import Supervisor
from superpipe_cluster.machine import parse_device
from superpipe_cluster.planning import Plan
from superpipe_cluster.planning.__main__ import answer
from superpipe_cluster.spec import ByteRange, PaintJob, ScriptJob
from superpipe_cluster.spec.units import parse_bytes

BUNDLED = {job.name: job for job in bundled.jobs()}
#: Half a minute or more to plan: every operator of billions of parameters' worth of layers is recorded, forth and back.
LARGE = {"finetune", "serve", "vision"}
#: Made for a small virtual device, to be watched; on a GPU the context alone is larger.
VIRTUAL_ONLY = {name for name in BUNDLED if name.startswith("demo/")}

_SIZE = r"([\d.]+ [KMGT]iB)"


@dataclass(frozen=True)
class Header:
    """The comment on top of a job file: a description, an empty line, then `# word   text` lines."""

    description: str
    facts: dict[str, str]

    @classmethod
    def read(cls, name: str) -> Header:
        text = BUNDLED[name].path.read_text(encoding="utf-8")
        comment = re.match(r"(#.*\n)*", text)
        assert comment is not None
        first, blank, *rest = comment[0].splitlines()
        assert blank == "#", f"{name}: the second line of the header is an empty comment"
        pairs = [re.fullmatch(r"# (\w+) {2,}(\S.*)", line) for line in rest]
        assert all(pairs), f"{name}: header lines are `# word   text`"
        return cls(first, {pair[1]: pair[2] for pair in pairs if pair})

    def size(self, pattern: str) -> int | None:
        found = re.search(pattern, self.facts["needs"])
        return parse_bytes(found[1].replace(" ", "")) if found else None


pytestmark = pytest.mark.timeout(400)


@functools.cache
def plan(name: str) -> Plan | None:
    """The bytes of a job on a GPU, as the head plans them; None for a script, and for a model that is not here.

    A model that another job is to make is planned as that job's own. All in this process, where each of the head's
    planners would load its libraries anew; for no device, so that no seconds are forecast and nothing is timed.
    """
    job = spec.load(BUNDLED[name].path)
    if job.model is not None and job.model.source_job is not None:
        others = [spec.load(other.path) for other in BUNDLED.values()]
        (source,) = (other for other in others if other.name == job.model.source_job)
        job = job.over(source)
    is_unknown = isinstance(job, PaintJob) and (
        job.model is None or not Path(job.model.source or "").is_absolute()
    )
    if is_unknown:
        return None  # of a pipeline that a script makes, or that is on the hub
    program = job.own_program or bundled.worker_path(job.worker)
    request = {"job": spec.dump(job), "program": str(program), "cuda": True, "device": None}
    with warnings.catch_warnings():
        # What libraries say of each other is no error in a planner's process.
        warnings.simplefilter("ignore", FutureWarning)
        found = answer(request)["plan"]
    planned = None if found is None else Plan.from_dict(found)
    assert (planned is None) == isinstance(job, ScriptJob)
    return planned


@pytest.mark.parametrize("name", BUNDLED)
class TestEachFile:
    def test_it_loads_without_mistakes_and_names_a_worker(self, name: str) -> None:
        job = spec.load(BUNDLED[name].path)
        job.local_files()
        # A program of its own lies beside it, and travels with it.
        assert job.worker in bundled.workers() or job.own_program == BUNDLED[name].path.with_suffix(".py")

    def test_it_starts_with_what_it_is(self, name: str) -> None:
        header = Header.read(name)
        assert re.fullmatch(r"# [A-Z].*\.", header.description)
        assert BUNDLED[name].description == header.description.removeprefix("# ")
        assert list(header.facts)[:3] == ["shows", "needs", "run"]

    def test_its_command_submits_it(self, name: str) -> None:
        typed = parse_line(Header.read(name).facts["run"])
        assert typed.command.name == "submit"
        assert typed.params["job"] == f"jobs:{name}"

    def test_jobs_that_it_builds_on_come_along_too(self, name: str) -> None:
        job = spec.load(BUNDLED[name].path)
        others = {spec.load(other.path).name for other in BUNDLED.values()}
        assert set(job.after.all) <= others
        if job.model is not None and job.model.source_job is not None:
            assert job.model.source_job in others
            assert f"`{job.model.source_job}`" in Header.read(name).facts["needs"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in BUNDLED]
)
class TestWhatEachNeeds:
    def test_it_can_run_in_what_it_asks_for(self, name: str) -> None:
        assert guaranteed(name, gpu=name not in VIRTUAL_ONLY) > 0

    def test_its_header_states_the_device_memory(self, name: str) -> None:
        header = Header.read(name)
        stated = header.size(_SIZE + " of device memory")
        assert stated is not None
        needed = guaranteed(name, gpu=False)
        assert needed <= stated <= 2 * needed
        if name not in VIRTUAL_ONLY:
            stated = header.size(_SIZE + " on a GPU") or stated
            needed = guaranteed(name, gpu=True)
            assert needed <= stated <= 2 * needed

    def test_its_header_states_the_host_memory(self, name: str) -> None:
        stated = Header.read(name).size(_SIZE + " of host RAM")
        assert stated is not None
        planned, asked = plan(name), spec.load(BUNDLED[name].path).resources.host_memory_bytes
        needed = asked if planned is None else planned.host_bytes
        assert needed is not None, f"{name}: nobody can plan it, so it says how much host RAM it takes"
        assert needed <= stated


def guaranteed(name: str, *, gpu: bool) -> int:
    """Device bytes without which the job does not start."""
    asked, planned = spec.load(BUNDLED[name].path).resources.gpu_memory, plan(name)
    if planned is None:
        assert isinstance(asked, ByteRange)
        return asked.min_bytes
    floor = planned.floor_bytes if gpu else planned.floor_bytes - planned.overhead_bytes
    if not isinstance(asked, ByteRange):
        return floor
    assert floor <= asked.max_bytes, f"{name}: the smallest workable budget is {floor} bytes"
    return max(floor, asked.min_bytes)


def test_train_says_truly_what_it_saves() -> None:
    train = plan("train")
    assert train is not None
    assert "in less than a third of the GPU memory it would take" in BUNDLED["train"].description
    assert guaranteed("train", gpu=True) < train.whole_bytes / 3
    assert "1.2-billion-parameter" in BUNDLED["train"].description
    assert round(train.model_bytes / 4 / 1e9, 1) == 1.2


# ---- what the examples of the queue show ---------------------------------------------------------------


def test_the_night_job_gives_way_by_day_and_never_gets_too_slow() -> None:
    job = spec.load(BUNDLED["train_nights"].path)
    assert (job.priority, job.schedule.window, job.schedule.at_end) == ("low", "nights", "shrink")
    assert (job.elastic.shrink, job.elastic.grow) == (True, True)
    assert job.elastic.max_slowdown == 3.0
    made = [
        line
        for line in BUNDLED["train_nights"].path.read_text().splitlines()
        if "spcluster windows set" in line
    ]
    typed = parse_line(made[0].removeprefix("#").strip())
    assert typed.params["name"] == job.schedule.window


def test_the_sweep_has_a_learning_rate_for_every_task() -> None:
    job = spec.load(BUNDLED["sweep"].path)
    assert job.array is not None
    assert job.array.indices == tuple(range(len(job.params["lr"])))
    assert job.array.limit == 2


def test_a_task_of_the_sweep_runs_with_its_own_learning_rate(tmp_path: Path) -> None:
    job = spec.load(BUNDLED["sweep"].path)
    task = job.model_copy(update={"params": {**job.params, "steps": 4}})
    folder = JobFolder(tmp_path / "job")
    folder.root.mkdir()
    Attempt(
        id="1",
        attempt=1,
        epoch=1,
        job=spec.dump(task),
        device=parse_device("cpu:1GiB@4GB/s"),
        budget_bytes=4 * 2**20,
        program=str(job.own_program),
        output=str(folder.output),
        array_index=5,
    ).write(folder)
    supervisor = Supervisor(folder.root)
    supervisor.start()
    end = supervisor.wait(100)
    assert end is not None
    assert end.reason == "ok", folder.log.read_text()
    assert json.loads((folder.output / "result.json").read_text())["lr"] == job.params["lr"][5]
