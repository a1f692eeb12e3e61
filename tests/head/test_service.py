from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from head.fakes import GIB, Clock, FakeExecutor
from superpipe_cluster import spec
from superpipe_cluster.api.service import Code
from superpipe_cluster.api.views import ChangeRequest, QuotaRequest, WindowRequest
from superpipe_cluster.errors import (
    BadInput,
    BudgetTooSmall,
    Conflict,
    FileMissing,
    Forbidden,
    NotFound,
    StoreUnavailable,
)
from superpipe_cluster.execution.attempt import Attempt
from superpipe_cluster.execution.interface import Worker
from superpipe_cluster.head.home import ClusterFile, Home, RayPlace
from superpipe_cluster.head.outlook import Outlook
from superpipe_cluster.head.presence import Presence
from superpipe_cluster.head.reports import Reports
from superpipe_cluster.head.service import HeadService, Pulse
from superpipe_cluster.head.tick import Tick
from superpipe_cluster.lifecycle.events import Exited, Placed
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import WaitReason
from superpipe_cluster.machine import HostMemory, parse_device
from superpipe_cluster.planning import Forecast, ForecastRow, Plan
from superpipe_cluster.scheduling.decisions import Wait
from superpipe_cluster.store.interface import JobStore, User
from superpipe_cluster.store.memory_store import MemoryStore
from superpipe_cluster.store.redis_store import RedisStore
from superpipe_cluster.store.writes import advance

ADA, BOB, ROOT = User("ada", "user"), User("bob", "user"), User("root", "admin")
PLAN = Plan(
    unit_bytes=(GIB // 4,) * 4,
    largest_unit_bytes=GIB // 4,
    resident_bytes=0,
    activation_bytes=0,
    streamed_bytes=GIB,
)
CODE = Code("mine.py", "def main(job): pass\n")


class Desk:
    """A service over a store, and what the planner was asked."""

    def __init__(self, root: Path, store: JobStore) -> None:
        self.store = store
        self.home = Home(root)
        self.home.create()
        self.clock = Clock()
        self.presence = Presence(self.clock)
        self.pulse = Pulse(trouble=None)
        self.planned: list[spec.JobSpec] = []
        self.plan: Plan | None = PLAN
        self.woken = 0
        self.outlook = Outlook()
        self.cluster = ClusterFile(
            url="http://127.0.0.1:7077",
            host="127.0.0.1",
            port=7077,
            redis_url="redis://user:hunter2@127.0.0.1:6379/0",
            redis_pid=None,
            ray=RayPlace("127.0.0.1:1234"),
            devices=(parse_device("cpu:4GiB@1GB/s"),),
            started_at=0.0,
        )
        memory = HostMemory(64 * GIB, 32 * GIB)
        self.service = HeadService(
            store,
            self.home,
            self.cluster,
            self.presence,
            self.pulse,
            self._plan,
            lambda: memory,
            0.0,
            self._wake,
            outlook=self.outlook,
        )

    def _plan(self, job: spec.JobSpec, program: Path, *, cuda: bool, device: object) -> Plan | None:
        assert program.is_file()
        self.planned.append(job)
        return self.plan

    def _wake(self) -> None:
        self.woken += 1

    def submit(self, user: User = ADA, key: str | None = None, **fields: Any) -> JobRecord:
        values = {"kind": "train", "name": "tiny", "worker": "/home/mine.py", **fields}
        return self.service.submit(user, spec.parse(values), CODE, key)

    def folders(self) -> list[str]:
        return sorted(path.name for path in self.home.jobs.iterdir())


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "home", MemoryStore())


def test_a_job_comes_in_with_its_program_its_plan_and_its_bytes(desk: Desk) -> None:
    record = desk.submit(priority="high", time_limit="5m", resources={"cpus": 2})
    assert (record.state, record.user, record.priority, record.time_limit_s) == ("QUEUED", "ada", 1, 300.0)
    assert (record.budget_min_bytes, record.budget_max_bytes) == (GIB // 4, GIB)
    assert (record.model_bytes, record.units, record.cpus) == (GIB, 4, 2)
    assert (desk.home.job(record.id).code / "mine.py").read_text() == CODE.text
    assert desk.woken == 1


def test_the_steps_that_a_job_file_tells_are_in_the_record(desk: Desk) -> None:
    assert desk.submit(kind="finetune", finetune={"steps": 40}).steps == 40
    assert desk.submit(kind="finetune", finetune={"epochs": 2}).steps is None
    assert desk.submit(train={"steps": 5}).steps == 5


def test_where_others_wait_already_a_job_says_from_the_first_that_it_waits_for_them(desk: Desk) -> None:
    assert desk.submit().reason is None
    desk.outlook.replace({}, Wait("1", WaitReason.PRIORITY, "others are ahead"))
    behind = desk.store.get(desk.submit().id)
    assert (behind.reason, behind.message) == (WaitReason.PRIORITY, "others are ahead")
    gated = desk.submit(after=[behind.id])
    assert (gated.reason, gated.message) == (None, None)
    desk.outlook.replace({})
    assert desk.submit().reason is None


def test_the_same_key_again_is_the_same_job(desk: Desk) -> None:
    first, again = desk.submit(key="k"), desk.submit(key="k")
    assert again.id == first.id
    assert desk.folders() == [first.id]
    assert desk.submit(user=BOB, key="k").id != first.id


def test_a_refused_job_leaves_nothing_behind(desk: Desk) -> None:
    with pytest.raises(BudgetTooSmall):
        desk.submit(resources={"gpu_memory": "1MiB"})
    assert desk.folders() == []
    assert desk.store.list_jobs() == []


def test_without_a_store_nothing_is_half_done(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    store = RedisStore(f"redis://127.0.0.1:{port}/0")
    desk = Desk(tmp_path / "home", store)
    with pytest.raises(StoreUnavailable):
        desk.submit()
    assert desk.folders() == []
    assert desk.service.trouble() is not None
    store.close()


class Fragile(MemoryStore):
    """A store that goes away in the middle of a submit."""

    def submit_all(
        self, records: Sequence[JobRecord], *, idempotency_key: str | None = None
    ) -> list[JobRecord]:
        raise StoreUnavailable("Redis does not answer")


def test_a_store_that_goes_away_while_a_job_is_planned_leaves_nothing_behind(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "home", Fragile())
    with pytest.raises(StoreUnavailable):
        desk.submit()
    assert desk.folders() == []


def test_files_that_are_not_here_are_named(desk: Desk) -> None:
    with pytest.raises(FileMissing, match="nowhere"):
        desk.submit(data={"files": ["/nowhere/text.txt"]})
    assert desk.folders() == []


def test_an_unknown_bundled_worker_is_refused(desk: Desk) -> None:
    job = spec.parse({"kind": "train", "name": "tiny", "worker": "/home/mine.py"})
    with pytest.raises(BadInput, match="trian_lm"):
        desk.service.submit(ADA, job.model_copy(update={"worker": "trian_lm"}), None, None)
    assert desk.folders() == []


def test_names_in_after_become_ids(desk: Desk) -> None:
    first = desk.submit(name="first")
    second = desk.submit(after=["first", first.id])
    assert second.after == (first.id,)
    with pytest.raises(BadInput, match="thrid"):
        desk.submit(after=["thrid"])


def test_another_jobs_output_as_a_model_is_planned_as_that_jobs_model(desk: Desk) -> None:
    config = {"model_type": "gpt2", "n_layer": 2}
    maker = desk.submit(name="maker", model={"config": config})
    user = desk.submit(model={"source": "job:maker"})
    assert user.after == (maker.id,)
    assert user.spec["model"]["source"] == f"job:{maker.id}"
    planned = desk.planned[-1].model
    assert planned is not None
    assert planned.config == config


def test_what_a_fine_tuning_makes_is_planned_as_it_will_be_made(desk: Desk) -> None:
    source = {"model": {"source": "org/base", "dtype": "bfloat16"}}

    def planned() -> tuple[str, str, int | None]:
        model = desk.planned[-1].model
        assert model is not None
        lora = model.planned_lora
        return str(model.source), model.dtype, None if lora is None else lora.r

    desk.submit(name="base", **source)
    desk.submit(name="tuned", kind="finetune", model={"source": "job:base"}, finetune={"lora": {"r": 4}})
    assert planned() == ("org/base", "float32", None), "as its own program plans it, with a new adapter"
    desk.submit(name="further", kind="finetune", model={"source": "job:tuned"}, finetune={"lora": {"r": 8}})
    assert planned() == ("org/base", "float32", 4)
    desk.submit(kind="generate", model={"source": "job:further", "dtype": "bfloat16"})
    assert planned() == ("org/base", "bfloat16", 4), "the adapter that was trained further"
    desk.submit(name="whole", kind="finetune", model={"source": "job:further"}, finetune={"method": "full"})
    assert planned() == ("org/base", "float32", 4), "merged by its own program"
    desk.submit(kind="generate", model={"source": "job:whole"})
    assert planned() == ("org/base", "float32", None)


def test_another_persons_output_is_not_for_taking(desk: Desk) -> None:
    desk.submit(name="maker", model={"config": {"model_type": "gpt2"}})
    with pytest.raises(Forbidden):
        desk.submit(user=BOB, model={"source": "job:maker"})
    assert desk.submit(user=BOB, after=["maker"]).user == "bob"


def test_a_job_is_meant_by_id_then_ones_own_name_then_anybodys(desk: Desk) -> None:
    alices, older, newer = desk.submit(name="run"), desk.submit(BOB, name="run"), desk.submit(BOB, name="run")
    assert desk.service.job(ADA, "run").id == alices.id
    assert desk.service.job(BOB, "run").id == newer.id
    assert desk.service.job(ROOT, "run").id == newer.id
    assert desk.service.job(ADA, older.id).id == older.id
    with pytest.raises(NotFound):
        desk.service.job(ADA, "walk")
    named_like_an_id = desk.submit(name="2026")
    assert desk.service.job(ADA, "2026").id == named_like_an_id.id


def test_a_waiting_job_is_cancelled_at_once_and_an_ended_one_not_again(desk: Desk) -> None:
    record = desk.submit()
    assert desk.service.cancel(ADA, record.id, force=False).state == "CANCELLED"
    with pytest.raises(Conflict, match="ended already"):
        desk.service.cancel(ADA, record.id, force=False)


def test_a_running_job_is_told_to_stop_and_then_to_die(desk: Desk) -> None:
    record = desk.submit()
    tick = Tick(desk.store, FakeExecutor(), desk.presence, desk.home, desk.cluster.devices, lambda: 64 * GIB)
    reports = Reports(desk.store, desk.presence, lambda: None)
    tick.run()
    worker = Worker(record.id, 1)
    reports.take(*worker, {"progress": {"running": True}, "end": None})
    assert desk.service.cancel(ADA, record.id, force=False).state == "STOPPING"
    orders = reports.take(*worker, {"progress": {}, "end": None})
    assert (orders.stop, orders.force) == ("cancelled", False)
    desk.service.cancel(ADA, record.id, force=True)
    assert reports.take(*worker, {"progress": {}, "end": None}).force
    assert [event.kind for event in desk.service.events(ADA, record.id)].count("stop_asked") == 1


def test_the_ledger_of_a_device_is_the_sum_over_the_records(desk: Desk) -> None:
    record = desk.submit(resources={"gpu_memory": "1GiB"})
    tick = Tick(desk.store, FakeExecutor(), desk.presence, desk.home, desk.cluster.devices, lambda: 64 * GIB)
    tick.run()
    (device,) = desk.service.devices(ADA).devices
    assert (device.used_bytes, device.free_bytes) == (GIB, 3 * GIB)
    assert [job.id for job in device.jobs] == [record.id]
    assert Attempt.read(desk.home.job(record.id).attempt).budget_bytes == GIB


def test_logs_are_read_by_offset(desk: Desk) -> None:
    record = desk.submit()
    assert desk.service.logs(ADA, record.id, offset=0, limit=10).size_bytes == 0
    desk.home.job(record.id).log.write_bytes(b"one\ntwo\n")
    chunk = desk.service.logs(ADA, record.id, offset=4, limit=2)
    assert (chunk.data, chunk.size_bytes) == (b"tw", 8)
    assert desk.service.logs(ADA, record.id, offset=100, limit=2).data == b""


def test_users_and_their_tokens(desk: Desk) -> None:
    token = desk.service.add_user(ROOT, "carol", "user")
    assert desk.service.authenticate(token) == desk.service.users(ROOT)[0]
    assert desk.service.authenticate("guess") is None
    with pytest.raises(Conflict):
        desk.service.add_user(ROOT, "carol", "user")


def test_the_cluster_view_hides_the_password_of_redis(desk: Desk) -> None:
    desk.submit()
    view = desk.service.cluster(ROOT)
    assert "hunter2" not in view.store
    assert "127.0.0.1:6379" in view.store
    assert view.jobs == {"QUEUED": 1}


# ---- what the scheduler goes by ----------------------------------------------------------------------


def test_the_record_says_what_the_scheduler_goes_by(desk: Desk) -> None:
    rows = tuple(
        ForecastRow(budget, 1, 1, budget, 0, link, 1.0, seconds, seconds, "link")
        for budget, seconds, link in ((GIB // 4, 3.0, 3000), (GIB // 2, 2.0, 2000), (GIB, 1.0, 0))
    )
    forecast = Forecast(rows, GIB // 4, GIB, GIB, 1.0, 4, "cpu")
    desk.plan = replace(PLAN, forecast=forecast)
    first = desk.submit(name="first")
    desk.service.put_window(
        ROOT, "night", WindowRequest(days="daily", start="22:00", end="07:00", timezone="UTC")
    )
    record = desk.submit(
        priority="interactive",
        elastic={"grow": False, "max_slowdown": 2.0},
        schedule={"window": "night", "at_end": "pause", "not_before": "2030-01-01T00:00+00:00"},
        after={"ok": ["first"], "any": [first.id], "fail": []},
        resources={"gpu_memory": "300MiB..1GiB"},
    )
    assert record.curve == ((GIB // 4, 3.0, 3000), (GIB // 2, 2.0, 2000), (GIB, 1.0, 0))
    assert (record.budget_min_bytes, record.link_min_bytes_per_s) == (GIB // 2, 1000)
    assert (record.may_shrink, record.may_grow, record.priority) == (True, False, 2)
    assert (record.window, record.at_window_end, record.begin_at) == ("night", "pause", 1893456000.0)
    assert (record.after, record.after_any, record.after_fail) == ((first.id,), (first.id,), ())
    assert (record.array, record.array_index, record.array_limit) == (None, None, None)


def test_without_a_forecast_there_is_no_curve(desk: Desk) -> None:
    desk.plan = None
    record = desk.submit(resources={"gpu_memory": "1GiB..2GiB"})
    assert (record.curve, record.budget_min_bytes, record.link_min_bytes_per_s) == ((), GIB, 0)


def test_equal_jobs_are_planned_once(desk: Desk) -> None:
    desk.submit(name="a", array="0-4")
    desk.submit(name="b", priority="low")
    assert len(desk.planned) == 1
    desk.submit(streaming={"k": 2})
    assert len(desk.planned) == 2


def test_each_task_of_an_array_has_a_folder_and_an_output_of_its_own(desk: Desk) -> None:
    first = desk.submit(array="2-4%2", output="/results/sweep")
    tasks = [desk.store.get(job_id) for job_id in desk.service.tasks(ADA, first)]
    assert [task.array_index for task in tasks] == [2, 3, 4]
    assert [task.output for task in tasks] == [f"/results/sweep/{index}" for index in (2, 3, 4)]
    assert {task.array for task in tasks} == {first.id}
    for task in tasks:
        assert (desk.home.job(task.id).code / "mine.py").read_text() == CODE.text
    assert desk.service.job(ADA, f"{first.id}_3") == tasks[1]
    assert desk.service.tasks(ADA, desk.submit()) == ()


def test_an_end_that_cannot_come_any_more_is_not_waited_for(desk: Desk) -> None:
    good, bad = desk.submit(name="good"), desk.submit(name="bad")
    for job, reason in ((good, "ok"), (bad, "error")):
        advance(desk.store, job.id, Placed("cpu:0", 1))
        advance(desk.store, job.id, Exited(reason))
    for after in ({"ok": ["bad"]}, {"fail": ["good"]}):
        with pytest.raises(BadInput, match="has ended"):
            desk.submit(after=after)
    with pytest.raises(BadInput, match="has ended"):
        desk.submit(model={"source": "job:bad"})
    for after in ({"ok": ["good"]}, {"fail": ["bad"]}, {"any": ["good", "bad"]}):
        assert desk.submit(after=after).state == "QUEUED"


def test_a_window_that_is_not_there_is_refused(desk: Desk) -> None:
    with pytest.raises(BadInput, match="no window night"):
        desk.submit(schedule={"window": "night"})
    assert desk.folders() == []


def test_doing_something_to_a_job_wakes_the_tick(desk: Desk) -> None:
    record = desk.submit()
    before = desk.woken
    desk.service.act(ADA, record.id, "hold")
    desk.service.change(ADA, record.id, ChangeRequest(priority="low"))
    desk.service.put_window(
        ROOT, "night", WindowRequest(days="daily", start="22:00", end="07:00", timezone="UTC")
    )
    desk.store.add_user("ada", "user", "0" * 64)
    desk.service.put_quota(ROOT, "ada", QuotaRequest())
    assert desk.woken == before + 4


def test_a_rule_that_only_a_newer_version_knows_is_left_out(desk: Desk) -> None:
    desk.store.put_setting("window:odd", {"phase": "full moon"})
    desk.store.put_setting("colour:ada", "green")
    assert desk.service.windows(ADA) == []
    assert desk.service.quotas(ADA) == []
