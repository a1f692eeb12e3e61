"""From a job file to a queued job: names resolved, program kept, model planned, record written.

Owns the order, and that a refused or failed submission leaves nothing behind. What may never run is decided
in `admission`; who is asking has been found out by the API.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from superpipe_cluster import bundled, spec
from superpipe_cluster.api.access import require_touch
from superpipe_cluster.api.service import Code
from superpipe_cluster.errors import BadInput, NotFound, SpclusterError
from superpipe_cluster.execution.layout import JobFolder
from superpipe_cluster.head.admission import needs_of
from superpipe_cluster.head.home import Home
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.machine import Device
from superpipe_cluster.planning import Plan, PlannedDevice
from superpipe_cluster.spec import JobSpec
from superpipe_cluster.spec.files import JOB_PREFIX, is_path
from superpipe_cluster.store.interface import JobStore, User

_log = logging.getLogger(__name__)

_PRIORITIES = {"low": -1, "normal": 0, "high": 1}


class Planner(Protocol):
    """How a job's model is planned; `planning.plan_job` in the cluster."""

    def __call__(
        self, job: JobSpec, program: Path, *, cuda: bool, device: PlannedDevice | None
    ) -> Plan | None:
        """The plan, or None if the program has no `probe`; errors are the user's."""
        ...


class Submission:
    """Takes jobs in. Safe to use from several threads.

    Args:
        store: where jobs go.
        home: where their folders are.
        devices: of this cluster.
        host_total_bytes: RAM of the machine.
        planner: finds out what a model takes.
        find: the job that a user means by an id or a name, or `NotFound`.
    """

    def __init__(
        self,
        store: JobStore,
        home: Home,
        devices: Sequence[Device],
        host_total_bytes: int,
        planner: Planner,
        find: Callable[[User, str], JobRecord],
    ) -> None:
        self._store = store
        self._home = home
        self._devices = devices
        self._host_total_bytes = host_total_bytes
        self._planner = planner
        self._find = find

    def submit(self, user: User, job: JobSpec, code: Code | None, idempotency_key: str | None) -> JobRecord:
        """See `api.service.Service.submit`."""
        job, source, after = self._resolve(user, job)
        _require_files(job)
        # The id comes first: without a store there is none, and so nothing to clean up.
        job_id = self._store.next_job_id()
        folder = self._home.job(job_id)
        kept = False
        try:
            program = _keep_program(job, code, folder)
            plan = self._plan(job, program, source)
            record = self._record(job_id, user, job, plan, after, folder)
            stored = self._store.submit(record, idempotency_key=idempotency_key)
            kept = stored.id == job_id
        finally:
            if not kept:
                shutil.rmtree(folder.root, ignore_errors=True)
        _log.info("job %s (%s) submitted by %s", stored.id, stored.name, user.name)
        return stored

    # ---- names -----------------------------------------------------------------------------------------

    def _resolve(self, user: User, job: JobSpec) -> tuple[JobSpec, JobRecord | None, tuple[str, ...]]:
        """The job with other jobs named by id, the one whose output is its model, and all it waits for."""
        after = tuple(dict.fromkeys(self._named(user, ref, "after").id for ref in job.after))
        reference = job.model.source_job if job.model is not None else None
        if job.model is None or reference is None:
            return job.model_copy(update={"after": after}), None, after
        source = self._named(user, reference, "model.source")
        require_touch(user, source)
        model = job.model.model_copy(update={"source": f"{JOB_PREFIX}{source.id}"})
        resolved = job.model_copy(update={"after": after, "model": model})
        return resolved, source, tuple(dict.fromkeys((*after, source.id)))

    def _named(self, user: User, ref: str, where: str) -> JobRecord:
        try:
            return self._find(user, ref)
        except NotFound:
            raise BadInput(
                f"{where} names the job {ref!r}, and there is no such job",
                hint="`spcluster queue -a` lists all jobs; submit the first one first",
            ) from None

    # ---- planning --------------------------------------------------------------------------------------

    def _plan(self, job: JobSpec, program: Path, source: JobRecord | None) -> Plan | None:
        """The plan. A model that another job is yet to make is planned as that job's own model."""
        while source is not None and job.model is not None:
            origin = spec.parse_stored(source.spec).model
            if origin is None:
                return None
            job = job.model_copy(update={"model": origin})
            reference = origin.source_job
            source = self._store.get(reference) if reference is not None else None
        cuda = any(device.kind == "cuda" for device in self._devices)
        largest = max(self._devices, key=lambda device: device.capacity_bytes)
        return self._planner(job, program, cuda=cuda, device=planned(largest))

    # ---- the record ------------------------------------------------------------------------------------

    def _record(
        self,
        job_id: str,
        user: User,
        job: JobSpec,
        plan: Plan | None,
        after: tuple[str, ...],
        folder: JobFolder,
    ) -> JobRecord:
        needs = needs_of(job, plan, self._devices, self._host_total_bytes)
        return JobRecord(
            id=job_id,
            name=job.name,
            user=user.name,
            kind=job.kind,
            spec=spec.dump(job),
            plan=plan.to_dict() if plan is not None else None,
            worker=job.worker,
            output=job.output or str(folder.output),
            priority=_PRIORITIES[job.priority],
            after=after,
            max_attempts=job.max_attempts,
            time_limit_s=job.time_limit_s,
            cpus=job.resources.cpus,
            budget_min_bytes=needs.budget_min_bytes,
            budget_max_bytes=needs.budget_max_bytes,
            host_bytes=needs.host_bytes,
            model_bytes=plan.model_bytes if plan is not None else 0,
            units=plan.units if plan is not None else None,
            steps=getattr(getattr(job, "train", None), "steps", None),
        )


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
    program = next(iter(sorted(folder.code.glob("*"))), None) if folder.code.is_dir() else None
    if program is None:
        raise NotFound(
            "the program that was submitted with the job is not there any more", hint="submit it again"
        )
    return program


def _keep_program(job: JobSpec, code: Code | None, folder: JobFolder) -> Path:
    """Make the job's folder; later edits of the user's own program do not change a queued job."""
    folder.root.mkdir(mode=0o700, parents=True)
    if code is not None:
        folder.code.mkdir()
        (folder.code / code.name).write_text(code.text, encoding="utf-8")
        descriptor = os.open(folder.code, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    try:
        return program_of(job.worker, folder)
    except NotFound as error:
        raise BadInput(error.message, hint=error.hint) from None


def _require_files(job: JobSpec) -> None:
    """Raise `FileMissing` for what the job names and this machine does not have; its program is with us."""
    try:
        job.model_copy(update={"worker": "train_lm"}).local_files()
    except SpclusterError:
        raise
    except OSError as error:
        raise BadInput(
            f"a file of {job.name} cannot be read: {error}", hint="check its permissions"
        ) from error
