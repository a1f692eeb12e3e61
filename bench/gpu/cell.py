"""One contender on one workload, in a process of its own: `python cell.py REQUEST` with JSON, JSON lines out.

A process each, for the contenders hook into torch, cap its allocator and may leave a GPU in an error that no later call
in that process survives.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[2]))  # a checkout that is not installed

import torch
from contenders import CONTENDERS
from contenders.door import Contender, NotHere, Task
from workloads import WORKLOADS

_LINK_BYTES = 256 << 20
_SAMPLE = 1 << 16  # elements of the output that are kept, to say how far off it is


def run(request: dict[str, Any]) -> None:
    """Run what `request` says and append its rows to the file it names."""
    device = torch.device(request["device"])
    write = _Writer(Path(request["rows"]))
    if request["contender"] is None:
        write(measure_machine(device))
        return
    task = Task(WORKLOADS[request["workload"]], request["scale"], device, on_cpu=device.type == "cpu")
    kind = CONTENDERS[request["contender"]]
    settings = (
        request["settings"] if request["settings"] is not None else kind.settings(task.workload, task.scale)
    )
    for number, setting in enumerate(settings):
        row: dict[str, Any] = {"setting": setting}
        try:
            kind.check(task.workload)
            row |= measure(kind, task, setting, request, Path(f"{request['rows']}.{number}.pt"))
        except NotHere as reason:
            row["not_here"] = str(reason)
        except Exception as error:  # whatever a contender fails with is its row
            row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        write(row)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


class _Writer:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, row: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    kind: type[Contender], task: Task, setting: dict[str, Any], request: dict[str, Any], saved: Path
) -> dict[str, Any]:
    """Open, run, close; seconds per step, bytes, and what came out."""
    on_gpu = task.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(task.device)
    began = time.perf_counter()
    contender = kind(task, setting)
    _synchronize(task.device)
    row: dict[str, Any] = {"open_s": time.perf_counter() - began}
    step = contender.train if task.workload.train else contender.infer
    results: list[torch.Tensor] = []
    seconds: list[float] = []
    before: dict[str, Any] = {}
    for number in range(request["warm_up"] + request["steps"]):
        if number == request["warm_up"]:
            before = contender.figures()
        began = time.perf_counter()
        out = step()
        _synchronize(task.device)
        seconds.append(time.perf_counter() - began)
        if task.workload.train or not results:
            results.append(out.detach().cpu())
    row |= {"seconds": statistics.median(seconds[request["warm_up"] :]), "all_seconds": seconds}
    if on_gpu:
        row["peak_allocated_bytes"] = torch.cuda.max_memory_allocated(task.device)
        row["peak_reserved_bytes"] = torch.cuda.max_memory_reserved(task.device)
    after = contender.figures()
    for name in ("h2d_bytes", "d2h_bytes", "loads"):
        if name in after:
            row[f"{name}_per_step"] = (after[name] - before[name]) / request["steps"]
    row |= {name: after[name] for name in ("units", "peak_bytes", "host_bytes") if name in after}
    contender.close()
    result = torch.stack([one.float() for one in results]) if task.workload.train else results[0]
    row["digest"] = hashlib.sha256(result.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
    torch.save(result.flatten()[:_SAMPLE].float(), saved)
    row["sample"] = os.fspath(saved)
    return row


def measure_machine(device: torch.device) -> dict[str, Any]:
    """Bytes per second each way between registered host memory and the device, alone; and what a context takes."""
    row: dict[str, Any] = {"device": device.type, "context_bytes": 0}
    host = torch.zeros(_LINK_BYTES, dtype=torch.uint8)
    there = torch.zeros(_LINK_BYTES, dtype=torch.uint8)
    if device.type == "cuda":
        from superpipe_cluster.streaming.devices.cuda_memory import gpu_memory

        context = gpu_memory(device.index or 0).context
        row |= {"context_bytes": context.nbytes, "context_source": context.source}
        row["device"] = torch.cuda.get_device_name(device)
        host, there = host.pin_memory(), there.to(device)
    for name, source, destination in (("h2d", host, there), ("d2h", there, host)):
        times = []
        for _ in range(6):
            _synchronize(device)
            began = time.perf_counter()
            destination.copy_(source, non_blocking=True)
            _synchronize(device)
            times.append(time.perf_counter() - began)
        row[f"{name}_bytes_per_s"] = _LINK_BYTES / min(times)
    return row


if __name__ == "__main__":
    run(json.loads(sys.argv[1]))
