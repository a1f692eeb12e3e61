"""`python -m superpipe_cluster.planning`: a plan request on standard input, one JSON line on standard output."""

from __future__ import annotations

import contextlib
import json
import runpy
import sys
from typing import Any

from superpipe_cluster import spec
from superpipe_cluster.errors import SpclusterError


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Plan what `request` asks for; see `plan_job` for its fields."""
    job = spec.parse(request["job"])
    program = runpy.run_path(request["program"], run_name="__spcluster_probe__")
    if "probe" not in program:
        return {"plan": None}
    from superpipe_cluster.planning.profile import profile  # torch, only now that it is needed

    return {"plan": profile(lambda: program["probe"](job), cuda=request["cuda"]).to_dict()}


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
