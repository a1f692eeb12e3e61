"""The Python client of a cluster: everything that the command line does, as methods.

Owns the HTTP conversation from the user's side: finding the cluster, retries while the head restarts, errors.
Prints nothing and holds no state of jobs. Needs httpx and pydantic, and neither torch nor ray.
"""

from __future__ import annotations

from superpipe_cluster.client.connect import Connection, find_cluster, home_directory
from superpipe_cluster.client.jobs import Client, LogPiece

__all__ = ["Client", "Connection", "LogPiece", "find_cluster", "home_directory"]
