"""What `up` and `down` ask of Ray, each in a process of its own: `python -m superpipe_cluster.head.driver`.

Owns the few calls that need a connection to Ray. [Note: Ray in a process of its own] Ray reads its settings
and its token once per process, and cannot be made to forget them; a process per question keeps them out of
the process that asks, which may ask about another cluster next. Arguments: the home directory and the
question; the answer is one line of JSON on standard output.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from superpipe_cluster.execution.actor import HEAD_NAME, NAMESPACE
from superpipe_cluster.execution.ray_executor import RayExecutor
from superpipe_cluster.head.actor import HeadActor
from superpipe_cluster.head.home import Home
from superpipe_cluster.head.tick import Drain

#: Seconds for a new head to answer HTTP and go round its loop once.
READY_TIMEOUT_S = 60.0
#: Seconds for the jobs to save and stop; longer than the grace that a worker gives its child.
DRAIN_TIMEOUT_S = 20.0
#: Seconds for which one question waits for jobs to end by themselves.
FINISH_SLICE_S = 30.0


def has_head() -> dict[str, Any]:
    """Whether there is a head, running or being restarted."""
    return {"head": _head() is not None}


def start_head(home: Home) -> dict[str, Any]:
    """Make the head's actor, unless it `existed`, and wait until it works; `trouble` says why it does not."""
    if _head() is not None:
        return {"trouble": None, "existed": True}
    kind: Any = ray.remote(HeadActor)
    head = kind.options(
        name=HEAD_NAME,
        namespace=NAMESPACE,
        lifetime="detached",
        max_restarts=-1,
        num_cpus=0,
        num_gpus=0,
        # Here: the port of the API, the devices that `up` has found and the embedded Redis are this node's.
        scheduling_strategy=NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        ),
        max_concurrency=64,  # workers report in parallel, and `drain` waits inside a call
    ).remote(str(home.root))
    try:
        trouble: Any = ray.get(head.ready.remote(READY_TIMEOUT_S), timeout=READY_TIMEOUT_S + 30)
    except RayError as error:
        trouble = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    if trouble is not None:
        ray.kill(head, no_restart=True)
    return {"trouble": trouble, "existed": False}


def stop_head() -> dict[str, Any]:
    """End the head and nothing else. Its name is free when this returns."""
    head = _head()
    if head is not None:
        ray.kill(head, no_restart=True)
    return {"head": head is not None}


def drain() -> dict[str, Any]:
    """Have the head send all jobs back to the queue."""
    head = _head()
    if head is None:
        return {"drained": False}
    try:
        done: Any = ray.get(head.drain.remote(Drain.SAVE, DRAIN_TIMEOUT_S), timeout=DRAIN_TIMEOUT_S + 5)
    except RayError:
        done = False  # it is dying, or hangs; the jobs are ended without it
    return {"drained": bool(done)}


def let_finish() -> dict[str, Any]:
    """Have the head start no more jobs, and wait a while for those that run to end. To be asked until they have."""
    head = _head()
    if head is None:
        return {"drained": False, "head": False}
    try:
        done: Any = ray.get(head.drain.remote(Drain.FINISH, FINISH_SLICE_S), timeout=FINISH_SLICE_S + 5)
    except RayError:  # it is dying, and Ray makes another one, which has to be told as well
        time.sleep(1.0)
        done = False
    return {"drained": bool(done), "head": True}


def go_on() -> dict[str, Any]:
    """Have the head start jobs again."""
    head = _head()
    if head is not None:
        with contextlib.suppress(RayError):
            ray.get(head.drain.remote(None, 0.0), timeout=5)
    return {"head": head is not None}


def stop_all() -> dict[str, Any]:
    """End the head and every worker; for a Ray that is somebody else's and stays."""
    stop_head()
    executor = RayExecutor()
    workers = executor.alive()
    for worker in workers:
        executor.kill(worker)
    return {"workers": len(workers)}


def _head() -> Any | None:
    try:
        return ray.get_actor(HEAD_NAME, namespace=NAMESPACE)
    except ValueError:  # Ray's word for "no such actor"
        return None


def main(root: Path, question: str) -> int:
    """Connect, ask, and print the answer."""
    home = Home(root)
    questions = {
        "has-head": has_head,
        "start-head": lambda: start_head(home),
        "stop-head": stop_head,
        "drain": drain,
        "let-finish": let_finish,
        "go-on": go_on,
        "stop-all": stop_all,
    }
    try:
        ray.init(
            address=home.read_cluster().ray.address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        answer: dict[str, Any] = {"unreachable": str(error)}
    else:
        answer = questions[question]()
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
