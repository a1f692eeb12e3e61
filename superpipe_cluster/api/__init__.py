"""The HTTP door of the head: jobs, devices, users, and who may see what.

Owns the wire format (`views.py`), the rules of access (`access.py`), the routes, and the Protocol that the
head implements (`service.py`). Owns no state and decides nothing about jobs. The names below are loaded on
first use: the client needs the views alone, and should not pay for FastAPI.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from superpipe_cluster.api.app import build_app
    from superpipe_cluster.api.service import Code, CodeFile, LogChunk, OwnCode, Service

__all__ = ["Code", "CodeFile", "LogChunk", "OwnCode", "Service", "build_app"]

_HOMES = {
    "build_app": "app",
    "Code": "service",
    "CodeFile": "service",
    "LogChunk": "service",
    "OwnCode": "service",
    "Service": "service",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
