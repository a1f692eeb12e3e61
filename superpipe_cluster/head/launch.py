"""Writing an attempt down for its worker.

Owns what of a record, and of the machine, goes into the attempt's `spec.json`; references that only the
cluster can follow (another job's output) are followed here, at the last moment.
"""

from __future__ import annotations

from collections.abc import Mapping

from superpipe_cluster.execution.attempt import Attempt
from superpipe_cluster.head.home import Home
from superpipe_cluster.head.submission import program_of
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.machine import Device
from superpipe_cluster.spec.files import JOB_PREFIX
from superpipe_cluster.store.interface import JobStore


def write_attempt(record: JobRecord, home: Home, devices: Mapping[str, Device], store: JobStore) -> None:
    """Make the attempt that `record` is placed for the newest in the job's folder.

    Raises:
        NotFound: its program, its device, or the job whose output it uses is not there any more.
        OSError: the folder cannot be written.
    """
    assert record.device is not None
    assert record.budget_bytes is not None
    folder = home.job(record.id)
    device = devices[record.device]
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
        link_clock=str(home.root / f"link-{device.id}") if device.kind == "virtual" else None,
        resolved=_resolved(record, store),
    ).write(folder)


def _resolved(record: JobRecord, store: JobStore) -> dict[str, str]:
    source = (record.spec.get("model") or {}).get("source") or ""
    if not source.startswith(JOB_PREFIX):
        return {}
    maker = store.get(source.removeprefix(JOB_PREFIX))
    return {"model_source": maker.output or ""}
