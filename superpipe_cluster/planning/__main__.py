"""`python -m superpipe_cluster.planning`: a plan request on standard input, one JSON line on standard output."""

from __future__ import annotations

import contextlib
import json
import runpy
import sys
from typing import Any

from superpipe_cluster import spec
from superpipe_cluster.errors import SpclusterError, Unplannable
from superpipe_cluster.planning.plan import PlannedDevice


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Plan or measure what `request` asks for; see `plan_job` and `measure_job` for its fields."""
    job = spec.parse(request["job"])
    program = runpy.run_path(request["program"], run_name="__spcluster_probe__")
    if "probe" not in program:
        return {"plan": None}
    # torch, only now that it is needed
    import torch

    from superpipe_cluster.planning.model_plan import recorded, where_of
    from superpipe_cluster.planning.profile import forecast_on, plan_of
    from superpipe_cluster.planning.trial import trial
    from superpipe_cluster.streaming.budget import Terms
    from superpipe_cluster.streaming.devices.virtual_device import VirtualDevice

    device = None if request["device"] is None else PlannedDevice(**request["device"])
    terms = Terms(job.streaming.k, job.streaming.k_prime, job.streaming.policy)
    activations, where = job.streaming.activations, where_of(job)
    if device is not None and request["measure"]:
        place = (
            VirtualDevice(link_bytes_per_s=device.link_bytes_per_s)
            if device.gpu is None
            else torch.device("cuda", 0)
        )
        runs = (
            trial(
                lambda: program["probe"](job), one, place, terms=terms, activations=activations, where=where
            )
            for one in request["measure"]
        )
        return {"measured": [run.to_dict() for run in runs]}
    try:
        trace = recorded(lambda: program["probe"](job), activations=activations, where=where)
    except Unplannable:
        if job.resources.gpu_memory == "auto":
            raise
        return {"plan": None}  # as for a program that has no probe
    forecast = None
    if device is not None:
        asked = job.resources.gpu_memory
        also = [] if asked == "auto" else [asked.min_bytes, asked.max_bytes]
        forecast = forecast_on(trace, device, terms, also)
    return {"plan": plan_of(trace, cuda=request["cuda"], forecast=forecast).to_dict()}


def main() -> None:
    """Answer one request; an error a person can mend is an answer too."""
    request = json.load(sys.stdin)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what a user's program prints is not the answer
            result = answer(request)
    except SpclusterError as error:
        result = {"error": {"message": error.message, "hint": error.hint}}
    except Exception as error:
        text = str(error).splitlines() or [""]
        result = {
            "error": {
                "message": f"the model of this job cannot be planned: {type(error).__name__}: {text[0]}",
                "hint": "check the model section; a size in resources.gpu_memory does not need a plan",
            }
        }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
