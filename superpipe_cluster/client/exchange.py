"""One request and its answer, over a head that may be restarting.

Owns retries, their bounds and what they may repeat; knows no routes. [Note: two patiences] A head restarts in
seconds, so a request that finds nobody is tried again for `PATIENCE_S`. Who already follows a job has more of
it: the job goes on without the head, and the follower should, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from superpipe_cluster.api.faults import from_answer
from superpipe_cluster.client.connect import Connection
from superpipe_cluster.errors import NotRunning, SpclusterError, StoreUnavailable

#: How long a request is tried again when nobody answers, seconds.
PATIENCE_S = 10.0
#: The same for somebody in the middle of following a job.
FOLLOWING_PATIENCE_S = 600.0

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
#: Longer than the longest time that the head waits for news before it answers.
_READ_TIMEOUT_S = 30.0


class Exchange:
    """Requests to one cluster.

    Args:
        find: gives address and token; asked again after a failure, since a restarted head may have a new
            port.
        on_retry: told what is wrong, once per outage, before the first retry.
        patience_s: for how long a request is tried again.
        following_patience_s: for how long one of `following` is.
        sleep: waits that many seconds.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        find: Callable[[], Connection],
        *,
        on_retry: Callable[[str], None] | None = None,
        patience_s: float = PATIENCE_S,
        following_patience_s: float = FOLLOWING_PATIENCE_S,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find = find
        self._on_retry = on_retry
        self._patience_s = patience_s
        self._following_patience_s = following_patience_s
        self._sleep = sleep
        self._clock = clock
        # Loopback and lab addresses are not to be reached through a proxy, and the token is not for it.
        self._http = httpx.Client(trust_env=False, timeout=httpx.Timeout(_READ_TIMEOUT_S, connect=5.0))

    def close(self) -> None:
        """Drop the connections."""
        self._http.close()

    def ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool = True,
        following: bool = False,
        timeout_s: float = _READ_TIMEOUT_S,
    ) -> bytes:
        """The body of the answer.

        Args:
            method: HTTP method.
            path: path below the cluster's URL.
            params: query.
            json: body.
            headers: further headers.
            repeatable: whether asking twice is as good as once; if not, only a request that never got there
                is repeated.
            following: whether to have the longer patience, which also outlasts a missing Redis.
            timeout_s: how long to wait for an answer, seconds.

        Raises:
            NotRunning: nobody answers, for as long as we had patience.
            SpclusterError: what the cluster answers when it refuses.
        """
        give_up_at = self._clock() + (self._following_patience_s if following else self._patience_s)
        pause_s, announced = _FIRST_PAUSE_S, False
        while True:
            place = self._find()
            try:
                answer = self._http.request(
                    method,
                    place.url + path,
                    params=params,
                    json=json,
                    headers={"Authorization": f"Bearer {place.token}", **(headers or {})},
                    timeout=httpx.Timeout(timeout_s, connect=5.0),
                )
                if answer.is_success:
                    return answer.content
                failure = from_answer(answer.status_code, answer.content)
                if not (following and isinstance(failure, StoreUnavailable | NotRunning)):
                    raise failure
            except httpx.TransportError as error:
                failure = _silence(place, error)
                never_arrived = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                if not (repeatable or never_arrived):
                    raise _unsure(failure) from None
            if self._clock() + pause_s > give_up_at:
                raise failure
            if self._on_retry is not None and not announced:
                self._on_retry(f"{failure.message}; trying again for {give_up_at - self._clock():.0f} s")
                announced = True
            self._sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


def _silence(place: Connection, error: httpx.TransportError) -> SpclusterError:
    known = {"ConnectError": "nobody listens there", "ReadTimeout": "no answer in time"}
    why = known.get(type(error).__name__, "the connection broke")
    return NotRunning(
        f"the cluster at {place.url} does not answer ({why})",
        hint="`spcluster up` starts it (again); `spcluster doctor` says what is wrong",
    )


def _unsure(failure: SpclusterError) -> SpclusterError:
    return NotRunning(
        f"{failure.message}, and it may or may not have done what was asked",
        hint="look before trying again",
    )
