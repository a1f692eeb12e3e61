"""What can go wrong with Redis, as one clear error: `StoreUnavailable`, with what to do about it.

Owns the translation of everything the Redis client raises, and the conditions under which a Redis is trusted
with jobs at all. Passwords in URLs are never repeated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import redis

from superpipe_cluster.errors import StoreUnavailable

#: The oldest Redis with everything the scripts use (exclusive stream ranges).
OLDEST_REDIS = (6, 2)

#: Words in the refusals of a Redis that answers -> what that means, what to do. Inside a script's error they
#: stand somewhere in the middle, so they are searched for.
_REFUSALS: dict[str, tuple[str, str]] = {
    "OOM": (
        "is full (its maxmemory is reached) and takes no writes",
        "raise maxmemory: the cluster's data must never be evicted",
    ),
    "READONLY": ("is a read-only replica", "give the address of the primary"),
    "MISCONF": (
        "cannot write its data to disk and takes no writes",
        "free some disk space; its log says more",
    ),
    "NOREPLICAS": ("has too few replicas and takes no writes", "start them, or lower min-replicas-to-write"),
    "LOADING": ("is still loading its data", "try again in a moment"),
    "BUSY": ("is busy with a script that does not end", "see SCRIPT KILL; no script of ours runs that long"),
    "NOAUTH": ("wants a password", "put it into the URL: redis://:PASSWORD@host:port/0"),
    "WRONGPASS": ("refuses the password", "check the one in the URL"),
    "NOPERM": (
        "does not allow this user a command that is needed",
        "see ACL SETUSER; allow +@all on spcluster:*",
    ),
    "WRONGTYPE": ("holds data of another program under our keys", "use another database number in the URL"),
}


class Faults:
    """A context in which every error of the Redis client becomes a `StoreUnavailable`.

    Holds no state between uses, so one object serves all threads.
    """

    def __init__(self, url: str, answer_timeout_s: float) -> None:
        #: The Redis for people: its URL without user and password.
        self.place = _place(url)
        self._has_password = "@" in urlsplit(url).netloc or "password=" in urlsplit(url).query
        self._answer_timeout_s = answer_timeout_s

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, redis.RedisError):
            raise self._translated(error) from error

    def _translated(self, error: redis.RedisError) -> StoreUnavailable:
        if isinstance(error, redis.AuthenticationError):
            # What Redis says differs between protocols and versions; whether we gave a password does not.
            refusal = _REFUSALS["WRONGPASS" if self._has_password else "NOAUTH"]
        else:
            refusal = _refusal(error)
        if refusal is not None:
            meaning, cure = refusal
            return StoreUnavailable(f"Redis at {self.place} {meaning}", hint=cure)
        if isinstance(error, redis.TimeoutError):
            return StoreUnavailable(
                f"Redis at {self.place} did not answer within {self._answer_timeout_s:g} s",
                hint="it may be stopped, overloaded or cut off; `spcluster doctor` looks at it",
            )
        if isinstance(error, redis.ConnectionError):
            return StoreUnavailable(
                f"Redis at {self.place} cannot be reached ({error})",
                hint="is it running? `spcluster doctor` looks at it, `spcluster up` starts one",
            )
        return StoreUnavailable(
            f"Redis at {self.place} refused a command: {error}", hint="its log may say why"
        )


def check_server(info: Mapping[str, Any], place: str) -> None:
    """Raise `StoreUnavailable` unless the server whose INFO this is can be trusted with jobs."""
    version = str(info.get("redis_version", "0"))
    if version_numbers(version) < OLDEST_REDIS:
        oldest = ".".join(map(str, OLDEST_REDIS))
        raise StoreUnavailable(
            f"Redis at {place} is version {version}, too old", hint=f"use {oldest} or newer, or Valkey"
        )
    if info.get("redis_mode") == "cluster":
        raise StoreUnavailable(
            f"Redis at {place} runs in cluster mode, over which a job's keys would be scattered",
            hint="use a single server; replicas of it are fine",
        )
    policy = info.get("maxmemory_policy", "noeviction")
    if info.get("maxmemory", 0) and policy != "noeviction":
        raise StoreUnavailable(
            f"Redis at {place} throws data away when it is full (maxmemory-policy {policy})",
            hint="set maxmemory-policy noeviction",
        )


def version_numbers(text: str) -> tuple[int, ...]:
    """`6.2.14` as (6, 2, 14); what is not a number ends it."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _refusal(error: redis.RedisError) -> tuple[str, str] | None:
    # The client strips the leading word of some refusals and makes it the class of the error instead.
    for kind, word in (
        (redis.OutOfMemoryError, "OOM"),
        (redis.ReadOnlyError, "READONLY"),
        (redis.BusyLoadingError, "LOADING"),
    ):
        if isinstance(error, kind):
            return _REFUSALS[word]
    found = re.search(rf"\b({'|'.join(_REFUSALS)})\b", str(error))
    if found:
        return _REFUSALS[found[1]]
    return None


def _place(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
