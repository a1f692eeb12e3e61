"""Layer streaming for any `nn.Module`, and the lab's queue in front of one shared GPU.

The public names are loaded on first use, so that `import superpipe_cluster` stays light (no torch, no ray) and the
streaming runtime stays usable where only torch is installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from superpipe_cluster.client import Client
    from superpipe_cluster.execution.current import current_job, stream
    from superpipe_cluster.planning.model_plan import plan
    from superpipe_cluster.streaming import Streamer

__all__ = ["Client", "Streamer", "__version__", "current_job", "plan", "stream"]

__version__ = "0.1.0"

_HOMES = {
    "Client": "superpipe_cluster.client",
    "plan": "superpipe_cluster.planning.model_plan",
    "Streamer": "superpipe_cluster.streaming",
    "current_job": "superpipe_cluster.execution.current",
    "stream": "superpipe_cluster.execution.current",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
