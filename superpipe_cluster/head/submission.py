"""From a job file to queued jobs: names resolved, program kept, model planned, records written.

Owns the order, and that a refused or failed submission leaves nothing behind. What may never run is decided
in `admission`; who is asking has been found out by the API.

[Note: one write] All tasks of an array come in by one write of the store, so there is never a part of an array. When
the answer to that write is lost, the store is asked what became of it: jobs that are there have come in, and keep
their folders.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from superpipe_cluster import bundled, spec
from superpipe_cluster.api.access import require_touch
from superpipe_cluster.api.service import Code, OwnCode
from superpipe_cluster.errors import BadInput, NotFound, SpclusterError, StoreUnavailable
from superpipe_cluster.execution.layout import JobFolder
from superpipe_cluster.head.admission import needs_of, require_quota
from superpipe_cluster.head.home import Home
from superpipe_cluster.head.outlook import Outlook
from superpipe_cluster.head.plans import Planner
from superpipe_cluster.head.rules import Rules
from superpipe_cluster.head.shared_copies import shared_copy_of
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import JobState
from superpipe_cluster.machine import Device
from superpipe_cluster.planning import Plan, PlannedDevice
from superpipe_cluster.scheduling.decisions import Wait
from superpipe_cluster.spec import AfterSection, JobSpec, ScriptJob
from superpipe_cluster.spec.files import JOB_PREFIX, is_path
from superpipe_cluster.store.interface import JobStore, User

_log = logging.getLogger(__name__)

#: More programs than this are quicker written to disk together with all else that waits to be.
_SETTLED_ONE_BY_ONE = 4

#: The numbers of the priority classes.
PRIORITIES = {"low": -1, "normal": 0, "high": 1, "interactive": 2}


@dataclass(frozen=True, slots=True)
class _Resolved:
    """A job with other jobs named by id.

    Attributes:
        job: the job file.
        stored: the same, as records keep it.
        source: the job whose output is its model.
        after: all that must succeed first, `source` among them.
    """

    job: JobSpec
    stored: dict[str, Any]
    source: JobRecord | None
    after: tuple[str, ...]


class Submission:
    """Takes jobs in. Safe to use from several threads.

    Args:
        store: where jobs go.
        home: where their folders are.
        devices: of this cluster.
        host_total_bytes: RAM of the machine.
        planner: finds out what a model takes.
        rules: the windows and quotas.
        find: the job that a user means by an id or a name, or `NotFound`.
        outlook: whether others wait already.
    """

    def __init__(
        self,
        store: JobStore,
        home: Home,
        devices: Sequence[Device],
        host_total_bytes: int,
        planner: Planner,
        rules: Rules,
        find: Callable[[User, str], JobRecord],
        outlook: Outlook,
    ) -> None:
        self._store = store
        self._home = home
        self._devices = devices
        self._host_total_bytes = host_total_bytes
        self._planner = planner
        self._rules = rules
        self._find = find
        self._outlook = outlook

    def submit(
        self, user: User, job: JobSpec, code: OwnCode | None, idempotency_key: str | None
    ) -> JobRecord:
        """See `api.service.Service.submit`."""
        asked = self._resolve(user, job)
        _require_files(job)
        self._rules.require_window(job.schedule.window)
        indices = job.array.indices if job.array is not None else (None,)
        folders: dict[str, JobFolder] = {}
        stored: list[JobRecord] = []
        try:
            # Ids come first: without a store there are none, and so nothing to clean up.
            for _ in indices:
                job_id, folder = self._new_folder(code)
                folders[job_id] = folder
            if code is not None:
                self._settle(list(folders.values()))
            first = next(iter(folders))
            tasks = zip(folders.items(), indices, strict=True)
            records = [self._record(user, asked, *named, first, index) for named, index in tasks]
            stored = self._written(records, idempotency_key)
        finally:
            for job_id in folders.keys() - {record.id for record in stored}:
                self._clear(job_id, folders[job_id])
        _log.info("job %s (%s) submitted by %s", stored[0].id, stored[0].name, user.name)
        return stored[0]

    def _written(self, records: list[JobRecord], idempotency_key: str | None) -> list[JobRecord]:
        """The jobs as they came in. See [Note: one write]."""
        try:
            return self._store.submit_all(records, idempotency_key=idempotency_key)
        except StoreUnavailable as failure:
            try:
                return [self._store.get(record.id) for record in records]
            except SpclusterError:
                raise failure from None

    # ---- folders ---------------------------------------------------------------------------------------

    def _new_folder(self, code: OwnCode | None) -> tuple[str, JobFolder]:
        """An id and its folder, with the program in it: later edits of it do not change a queued job."""
        while True:
            job_id = self._store.next_job_id()
            folder = self._home.job(job_id)
            try:
                folder.root.mkdir(mode=0o700, parents=True)
                _keep_program(code, folder)
                return job_id, folder
            except FileExistsError:
                continue  # a job's that Redis lost with its last second; what it made is not another job's
            except OSError as error:
                shutil.rmtree(folder.root, ignore_errors=True)
                raise _disk_refuses(self._home, error) from error

    def _settle(self, folders: Sequence[JobFolder]) -> None:
        """Have the programs on the disk before anybody is told that the jobs are in."""
        if len(folders) > _SETTLED_ONE_BY_ONE:
            os.sync()
            return
        try:
            for folder in folders:
                for path in (*folder.code.rglob("*"), folder.code):
                    descriptor = os.open(path, os.O_RDONLY)
                    try:
                        os.fsync(descriptor)
                    finally:
                        os.close(descriptor)
        except OSError as error:
            raise _disk_refuses(self._home, error) from error

    def _clear(self, job_id: str, folder: JobFolder) -> None:
        """Remove the folder of a job that did not come in. It stays when nobody can tell."""
        try:
            self._store.get(job_id)
        except NotFound:
            shutil.rmtree(folder.root, ignore_errors=True)
        except SpclusterError as error:
            _log.warning("%s is left as it is, for job %s may have come in: %s", folder.root, job_id, error)

    # ---- names -----------------------------------------------------------------------------------------

    def _resolve(self, user: User, job: JobSpec) -> _Resolved:
        """The job with other jobs named by id, the one whose output is its model, and all it waits for."""
        named = {
            way: tuple(dict.fromkeys(self._awaited(user, ref, way) for ref in refs))
            for way, refs in job.after
        }
        both = set(named["ok"]) & set(named["fail"])
        if both:  # under two names, or the spec would have refused it
            raise BadInput(
                f"after waits for job {min(both)} both to succeed and to fail",
                hint="name it under one of ok and fail",
            )
        job = job.model_copy(update={"after": AfterSection(**named)})
        reference = job.model.source_job if job.model is not None else None
        if job.model is None or reference is None:
            return _Resolved(job, spec.dump(job), None, named["ok"])
        source = self._named(user, reference, "model.source")
        require_touch(user, source)
        _require_possible(source, "ok", "model.source")
        model = job.model.model_copy(update={"source": f"{JOB_PREFIX}{source.id}"})
        job = job.model_copy(update={"model": model})
        return _Resolved(job, spec.dump(job), source, tuple(dict.fromkeys((*named["ok"], source.id))))

    def _awaited(self, user: User, ref: str, way: str) -> str:
        other = self._named(user, ref, "after")
        _require_possible(other, way, "after")
        return other.id

    def _named(self, user: User, ref: str, where: str) -> JobRecord:
        try:
            return self._find(user, ref)
        except NotFound:
            raise BadInput(
                f"{where} names the job {ref!r}, and there is no such job",
                hint="`spcluster queue -a` lists all jobs; submit the first one first",
            ) from None

    # ---- the record ------------------------------------------------------------------------------------

    def _plan(self, job: JobSpec, program: Path, source: JobRecord | None) -> Plan | None:
        """The plan. A model that another job is yet to make is planned as it will be made."""
        if source is not None:
            job = job.over(self._foreseen(source))
            if job.model is None:
                return None
        cuda = any(device.kind == "cuda" for device in self._devices)
        largest = max(self._devices, key=lambda device: device.capacity_bytes)
        return self._planner(job, program, cuda=cuda, device=planned(largest))

    def _foreseen(self, record: JobRecord) -> JobSpec:
        """A job with a model that can be built before any other job has run."""
        job = spec.parse_stored(record.spec)
        reference = job.model.source_job if job.model is not None else None
        return job if reference is None else job.over(self._foreseen(self._store.get(reference)))

    def _record(
        self, user: User, asked: _Resolved, job_id: str, folder: JobFolder, first: str, index: int | None
    ) -> JobRecord:
        job = asked.job
        plan = self._plan(_as_task(job, index), _program_at_submit(job.worker, folder), asked.source)
        needs = needs_of(job, plan, self._devices, self._host_total_bytes)
        require_quota(job, needs, self._rules.quotas().get(user.name))
        output = job.output if job.output is None or index is None else str(Path(job.output) / str(index))
        behind = self._behind(asked)
        shared_copy, shared_bytes = shared_copy_of(job, plan)
        return JobRecord(
            id=job_id,
            name=job.name,
            user=user.name,
            kind=job.kind,
            spec=asked.stored,
            plan=_stored(plan) if plan is not None else None,
            worker=job.worker,
            output=output or str(folder.output),
            priority=PRIORITIES[job.priority],
            after=asked.after,
            after_any=job.after.any,
            after_fail=job.after.fail,
            array=first if index is not None else None,
            array_index=index,
            array_limit=job.array.limit if job.array is not None else None,
            window=job.schedule.window,
            at_window_end=job.schedule.at_end,
            begin_at=job.schedule.begin_at,
            max_attempts=job.max_attempts,
            time_limit_s=job.time_limit_s,
            cpus=job.resources.cpus,
            reason=behind.reason if behind is not None else None,
            message=behind.message if behind is not None else None,
            budget_min_bytes=needs.budget_min_bytes,
            budget_max_bytes=needs.budget_max_bytes,
            link_min_bytes_per_s=needs.link_min_bytes_per_s,
            may_shrink=job.elastic.shrink,
            may_grow=job.elastic.grow,
            curve=_curve(plan),
            host_bytes=needs.host_bytes,
            shared_bytes=shared_bytes,
            shared_copy=shared_copy,
            model_bytes=plan.model_bytes if plan is not None else 0,
            units=plan.units if plan is not None else None,
            steps=job.steps,
        )

    def _behind(self, asked: _Resolved) -> Wait | None:
        """Why the job waits, as far as that can be told before the first decision about it: others do.

        So a flood of submits is not written twice. For a job that goes to the front, or waits for something else that
        was not foreseen here, the next decision says so, as always.
        """
        job = asked.job
        is_free = job.schedule.window is None and job.schedule.begin_at is None and job.array is None
        awaits = asked.after or job.after.any or job.after.fail
        return self._outlook.behind if is_free and not awaits else None


def planned(device: Device) -> PlannedDevice:
    """`device`, as planning knows it."""
    if device.kind == "cuda":
        return PlannedDevice(gpu=device.name, capacity_bytes=device.capacity_bytes)
    return PlannedDevice(None, float(device.link_bytes_per_s), device.capacity_bytes)


def program_of(worker: str, folder: JobFolder) -> Path:
    """The file with `main(job)`: the job's own program as it was submitted, or the bundled worker.

    Raises:
        NotFound: there is no such bundled worker, or the job's own program has been removed.
    """
    if not is_path(worker):
        return bundled.worker_path(worker)
    # Beside it Python keeps a folder of its own, from the first attempt on.
    found = sorted(path for path in folder.code.glob("*") if path.is_file())
    program = found[0] if found else None
    if program is None:
        raise NotFound(
            "the program that was submitted with the job is not there any more", hint="submit it again"
        )
    return program


def _program_at_submit(worker: str, folder: JobFolder) -> Path:
    try:
        return program_of(worker, folder)
    except NotFound as error:
        raise BadInput(error.message, hint=error.hint) from None


def _keep_program(code: OwnCode | None, folder: JobFolder) -> None:
    if code is None:
        return
    folder.code.mkdir()
    if isinstance(code, Code):
        (folder.code / code.name).write_text(code.text, encoding="utf-8")
        return
    for file in code:
        path = folder.code / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
        path.chmod(0o555 if file.executable else 0o444)  # a result written over its own code would be lost


def _disk_refuses(home: Home, error: OSError) -> StoreUnavailable:
    return StoreUnavailable(
        f"the job's folder cannot be written in {home.jobs}: {error.strerror}",
        hint="free some disk space there; nothing was submitted",
    )


def _as_task(job: JobSpec, index: int | None) -> JobSpec:
    """The job as its program will see it: alone, and with its number among its `params`."""
    if index is None:
        return job
    return job.model_copy(update={"array": None, "params": {**job.params, "array_index": index}})


@lru_cache(maxsize=64)
def _stored(plan: Plan) -> dict[str, Any]:
    """The plan as JSON; for equal jobs, which come in crowds, it is made once."""
    return plan.to_dict()


def _curve(plan: Plan | None) -> tuple[tuple[int, float, int], ...]:
    """The forecast in short, see `JobRecord.curve`."""
    if plan is None or plan.forecast is None:
        return ()
    rows = {row.budget_bytes: row for row in plan.forecast.rows}
    return tuple((size, rows[size].step_s, rows[size].link_bytes_per_step) for size in sorted(rows))


def _require_possible(other: JobRecord, way: str, where: str) -> None:
    """Refuse to wait for an end that cannot come any more: `other` has ended in another way."""
    succeeded = other.state is JobState.SUCCEEDED
    if not other.state.is_terminal or way == "any" or succeeded == (way == "ok"):
        return
    wanted = "success" if way == "ok" else "failure"
    raise BadInput(
        f"{where} waits for the {wanted} of job {other.id} ({other.name}), which has ended: {other.state}",
        hint=f"`spcluster show {other.id}` says how",
    )


def _require_files(job: JobSpec) -> None:
    """Raise `FileMissing` for what the job names and this machine does not have; its program is with us."""
    with_us = {"folder": None} if isinstance(job, ScriptJob) else {"worker": "train_lm"}
    try:
        job.model_copy(update=with_us).local_files()
    except SpclusterError:
        raise
    except OSError as error:
        raise BadInput(
            f"a file of {job.name} cannot be read: {error}", hint="check its permissions"
        ) from error
