"""The cluster's home directory: its files, who may read them, and what `cluster.json` says.

Owns names and permissions. Secrets (the admin's token, Ray's token, a Redis URL with a password) are in files
that only their owner can read, and nowhere else.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from superpipe_cluster.errors import NotRunning, StartFailed
from superpipe_cluster.execution.layout import JobFolder
from superpipe_cluster.machine import Device


@dataclass(frozen=True, slots=True)
class RayPlace:
    """The Ray cluster: where it is, and, when it is one of our own, what belongs to it.

    Attributes:
        address: of its control store, HOST:PORT.
        temp_dir: its folder of logs and sockets; None for somebody else's Ray.
        session: the process session that all its processes are in; None for somebody else's.
    """

    address: str
    temp_dir: str | None = None
    session: int | None = None


@dataclass(frozen=True, slots=True)
class ClusterFile:
    """What `cluster.json` holds: the parts that run, as `up` started them.

    Attributes:
        url: of the HTTP API.
        host: address that the HTTP API listens on.
        port: of the HTTP API.
        redis_url: with a password if it has one; the file is private.
        redis_pid: the server's process when it is our own, else None.
        ray: the Ray cluster.
        devices: what jobs are placed on.
        started_at: unix seconds of `up`.
    """

    url: str
    host: str
    port: int
    redis_url: str
    redis_pid: int | None
    ray: RayPlace
    devices: tuple[Device, ...]
    started_at: float

    @classmethod
    def from_json(cls, text: str) -> ClusterFile:
        """Read what `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        values["ray"] = RayPlace(**values["ray"])
        values["devices"] = tuple(Device(**device) for device in values["devices"])
        return cls(**values)

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(asdict(self), indent=2)


@dataclass(frozen=True, slots=True)
class Home:
    """The paths in the home directory."""

    root: Path

    @property
    def token(self) -> Path:
        """The admin's bearer token."""
        return self.root / "token"

    @property
    def cluster(self) -> Path:
        """What runs."""
        return self.root / "cluster.json"

    @property
    def lock(self) -> Path:
        """Held while `up` or `down` works."""
        return self.root / "lock"

    @property
    def redis(self) -> Path:
        """The folder of our own Redis."""
        return self.root / "redis"

    @property
    def ray(self) -> Path:
        """The folder of our own Ray."""
        return self.root / "ray"

    @property
    def ray_token(self) -> Path:
        """What processes show to our own Ray."""
        return self.root / "ray-token"

    @property
    def clock(self) -> Path:
        """How the head's time differs from this machine's monotonic clock, see [Note: steady time]."""
        return self.root / "clock.json"

    @property
    def head_log(self) -> Path:
        """What the head has to say."""
        return self.root / "head.log"

    @property
    def head_pid(self) -> Path:
        """Pid and start time of the newest head."""
        return self.root / "head.pid"

    @property
    def jobs(self) -> Path:
        """The folders of all jobs."""
        return self.root / "jobs"

    def job(self, job_id: str) -> JobFolder:
        """The folder of one job."""
        return JobFolder(self.jobs / job_id)

    def create(self) -> None:
        """Make the directory, readable by its owner alone.

        Raises:
            StartFailed: it cannot be made, or is somebody else's.
        """
        try:
            self.jobs.mkdir(parents=True, exist_ok=True)
            self.root.chmod(0o700)
        except OSError as error:
            raise StartFailed(
                f"{self.root} cannot be used as the cluster's home: {error.strerror}",
                hint="set SPCLUSTER_HOME to a folder of your own",
            ) from error

    def read_cluster(self) -> ClusterFile:
        """What runs here.

        Raises:
            NotRunning: nothing does, as far as the files tell.
        """
        try:
            return ClusterFile.from_json(self.cluster.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise NotRunning(
                f"no cluster is running ({self.cluster} is not there)", hint="`spcluster up` starts one"
            ) from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise NotRunning(
                f"{self.cluster} cannot be read ({type(error).__name__})",
                hint=f"remove {self.cluster}, then `spcluster up`",
            ) from error


def write_private(path: Path, text: str) -> None:
    """Replace a file that only its owner may read; never for a moment is it open to others."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)
