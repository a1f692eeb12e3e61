"""The executor on Ray: one detached, named actor per attempt.

Owns the creation options and the mapping of names. Ray is used to place and watch processes; it knows nothing
of device bytes (`num_gpus=0`), which are the ledger's.

[Note: the node of the devices] A worker runs where its device is: on the node of the head, which has found the
devices, or on another one that is started with the label `spcluster-devices` and has the same ones
(`ray start --labels=spcluster-devices=all`; in a compose file the two nodes are containers on one machine). Never
just anywhere, as Ray would have it for actors that ask it for no resources.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from superpipe_cluster.execution import remains
from superpipe_cluster.execution.actor import NAMESPACE, WorkerActor
from superpipe_cluster.execution.interface import Worker
from superpipe_cluster.execution.layout import JobFolder
from superpipe_cluster.machine.devices import Device

#: Label of a Ray node that has the devices. See [Note: the node of the devices].
DEVICES_LABEL = "spcluster-devices"


class RayExecutor:
    """`Executor` over the Ray cluster that this process is connected to."""

    def start(self, worker: Worker, folder: Path) -> None:
        """See `Executor.start`. Returns before the worker lives; `alive` lists it from now on."""
        actor: Any = ray.remote(WorkerActor)
        actor.options(
            name=worker.name,
            namespace=NAMESPACE,
            lifetime="detached",  # not the head's child: it survives the head
            get_if_exists=True,
            num_cpus=0,
            num_gpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(_node_of_devices(), soft=False),
            max_restarts=0,  # another attempt has another epoch, and is the head's decision
        ).remote(worker.name, str(folder))

    def alive(self) -> frozenset[Worker]:
        """See `Executor.alive`."""
        listed: Any = ray.util.list_named_actors(all_namespaces=True)
        workers = (Worker.named(entry["name"]) for entry in listed if entry["namespace"] == NAMESPACE)
        return frozenset(worker for worker in workers if worker is not None)

    def kill(self, worker: Worker) -> None:
        """See `Executor.kill`."""
        try:
            ray.kill(ray.get_actor(worker.name, namespace=NAMESPACE), no_restart=True)
        except ValueError:  # Ray's word for "no such actor"
            return

    def hurry(self, worker: Worker) -> None:
        """See `Executor.hurry`."""
        try:
            ray.get_actor(worker.name, namespace=NAMESPACE).hurry.remote()
        except ValueError:
            return

    def clear(self, folder: Path, device: Device | None) -> bool:
        """See `Executor.clear`."""
        return remains.clear(JobFolder(folder), device)


def _node_of_devices() -> str:
    """The id of the node that workers are started on now."""
    nodes: Any = ray.nodes()
    labelled = (node["NodeID"] for node in nodes if node["Alive"] and DEVICES_LABEL in node["Labels"])
    return min(labelled, default=ray.get_runtime_context().get_node_id())
