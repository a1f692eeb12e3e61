"""Every job file that comes along: its header, its fields, and the bytes that its header promises."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from command_lines import parse_line
from superpipe_cluster import bundled, spec
from superpipe_cluster.planning import Plan, plan_job
from superpipe_cluster.spec import ByteRange, JobSpec
from superpipe_cluster.spec.units import parse_bytes

BUNDLED = {job.name: job for job in bundled.jobs()}
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


# Seven models are planned in the first test that asks; on a busy machine that takes its time.
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def plans() -> dict[str, Plan]:
    """Each job's plan for a GPU, made once."""
    loaded = {name: spec.load(job.path) for name, job in BUNDLED.items()}
    by_name = {job.name: job for job in loaded.values()}
    with ThreadPoolExecutor(2) as pool:
        planned = {name: pool.submit(plan, job, by_name) for name, job in loaded.items()}
    return {name: result.result() for name, result in planned.items()}


def plan(job: JobSpec, by_name: dict[str, JobSpec]) -> Plan:
    """As the head does it: a model that another job is to make is planned as that job's own."""
    assert job.model is not None
    if job.model.source_job is not None:
        job = job.model_copy(update={"model": by_name[job.model.source_job].model})
    planned = plan_job(job, bundled.worker_path(job.worker), cuda=True)
    assert planned is not None
    return planned


@pytest.mark.parametrize("name", BUNDLED)
class TestEachFile:
    def test_it_loads_without_mistakes_and_names_a_worker(self, name: str) -> None:
        job = spec.load(BUNDLED[name].path)
        job.local_files()
        assert job.worker in bundled.workers()

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
        assert set(job.after) <= others
        if job.model is not None and job.model.source_job is not None:
            assert job.model.source_job in others
            assert f"`{job.model.source_job}`" in Header.read(name).facts["needs"]

    def test_it_can_run_in_what_it_asks_for(self, name: str, plans: dict[str, Plan]) -> None:
        assert guaranteed(name, plans[name], gpu=name not in VIRTUAL_ONLY) > 0

    def test_its_header_states_the_device_memory(self, name: str, plans: dict[str, Plan]) -> None:
        header = Header.read(name)
        stated = header.size(_SIZE + " of device memory")
        assert stated is not None
        needed = guaranteed(name, plans[name], gpu=False)
        assert needed <= stated <= 2 * needed
        if name not in VIRTUAL_ONLY:
            stated = header.size(_SIZE + " on a GPU") or stated
            needed = guaranteed(name, plans[name], gpu=True)
            assert needed <= stated <= 2 * needed

    def test_its_header_states_the_host_memory(self, name: str, plans: dict[str, Plan]) -> None:
        stated = Header.read(name).size(_SIZE + " of host RAM")
        assert stated is not None
        assert plans[name].host_bytes <= stated


def guaranteed(name: str, plan: Plan, *, gpu: bool) -> int:
    """Device bytes without which the job does not start."""
    floor = plan.floor_bytes if gpu else plan.floor_bytes - plan.overhead_bytes
    asked = spec.load(BUNDLED[name].path).resources.gpu_memory
    if not isinstance(asked, ByteRange):
        return floor
    assert floor <= asked.max_bytes, f"{name}: the smallest workable budget is {floor} bytes"
    return max(floor, asked.min_bytes)


def test_train_says_truly_what_it_saves(plans: dict[str, Plan]) -> None:
    assert "in less than a third of the GPU memory it would take" in BUNDLED["train"].description
    assert guaranteed("train", plans["train"], gpu=True) < plans["train"].whole_bytes / 3
    assert "1.2-billion-parameter" in BUNDLED["train"].description
    assert round(plans["train"].model_bytes / 4 / 1e9, 1) == 1.2
