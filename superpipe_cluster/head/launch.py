"""Starting an attempt: it is written down for its worker, then the worker is asked for.

Owns what of a record, and of the machine, goes into the attempt's `spec.json`; references that only the
cluster can follow (another job's output) are followed here, at the last moment.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping
from pathlib import Path

from superpipe_cluster.errors import BadInput, NotFound, StartFailed
from superpipe_cluster.execution.attempt import Attempt
from superpipe_cluster.execution.interface import Executor, Worker
from superpipe_cluster.head.happenings import happen
from superpipe_cluster.head.home import Home
from superpipe_cluster.head.presence import Presence
from superpipe_cluster.head.submission import program_of
from superpipe_cluster.lifecycle.events import Exited
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import EndReason
from superpipe_cluster.machine import Device
from superpipe_cluster.spec import parse_stored
from superpipe_cluster.spec.files import JOB_PREFIX
from superpipe_cluster.store.interface import JobStore

_log = logging.getLogger(__name__)

#: What a disk says that takes nothing more. That is no fault of the job, and passes.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Launcher:
    """Starts attempts whose bytes are promised. Called by one thread.

    Args:
        store: where jobs are.
        executor: where workers are.
        presence: learns who was asked for.
        home: where the jobs' folders are.
        devices: of this cluster, by id.
    """

    def __init__(
        self,
        store: JobStore,
        executor: Executor,
        presence: Presence,
        home: Home,
        devices: Mapping[str, Device],
    ) -> None:
        self._store = store
        self._executor = executor
        self._presence = presence
        self._home = home
        self._devices = devices

    def launch(self, record: JobRecord) -> None:
        """Write the attempt and ask for its worker. See [Note: starts are at least once].

        Raises:
            StartFailed: the disk takes nothing; to be tried again.
        """
        try:
            self._write(record)
        except (NotFound, BadInput, OSError, KeyError) as error:
            if isinstance(error, OSError) and error.errno in _FULL:
                raise StartFailed(
                    f"job {record.id} cannot be started: {error.strerror}: {self._home.jobs}",
                    hint="free some disk space; it is tried again until then",
                ) from error
            known = isinstance(error, NotFound | BadInput)
            message = error.message if known else f"{type(error).__name__}: {error}"
            happen(self._store, record, Exited(EndReason.BAD_INPUT, f"the job cannot be started: {message}"))
            _log.info("job %s cannot be started: %s", record.id, message)
            return
        worker = Worker(record.id, record.epoch)
        self._executor.start(worker, self._home.job(record.id).root)
        self._presence.launched(worker)

    def _write(self, record: JobRecord) -> None:
        """Make the attempt that `record` is placed for the newest in the job's folder.

        Raises:
            NotFound: its program, its device, or the job whose output it uses is not there any more.
            BadInput: what that job was is not understood any more.
            OSError: the folder cannot be written.
        """
        assert record.device is not None
        assert record.budget_bytes is not None
        folder = self._home.job(record.id)
        device = self._devices[record.device]
        folder.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        Attempt(
            id=record.id,
            attempt=record.attempt,
            epoch=record.epoch,
            job=record.spec,
            device=device,
            budget_bytes=record.budget_bytes,
            program=str(program_of(record.worker, folder)),
            output=record.output or str(folder.output),
            cpus=record.cpus,
            link_clock=str(self._home.root / f"link-{device.id}") if device.kind == "virtual" else None,
            array_index=record.array_index,
            resolved=self._resolved(record),
        ).write(folder)

    def _resolved(self, record: JobRecord) -> dict[str, str]:
        source = (record.spec.get("model") or {}).get("source") or ""
        if not source.startswith(JOB_PREFIX):
            return {}
        maker = self._store.get(source.removeprefix(JOB_PREFIX))
        output = Path(maker.output or "")
        made = (output / name for name in parse_stored(maker.spec).model_folders)
        return {"model_source": str(next((folder for folder in made if folder.is_dir()), output))}
