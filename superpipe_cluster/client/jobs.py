"""`Client`: submit jobs to a cluster, look at them, follow them, stop them.

Owns these routes and what a method of the client promises; those about the cluster as a whole are in `cluster.py`,
single requests and their retries in `exchange.py`.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from superpipe_cluster import spec as job_files
from superpipe_cluster.api.views import JobDetail, JobList, JobView, LogView
from superpipe_cluster.client.cluster import ClusterCalls, user_name
from superpipe_cluster.client.connect import Connection, find_cluster
from superpipe_cluster.client.exchange import FOLLOWING_PATIENCE_S, PATIENCE_S, Exchange
from superpipe_cluster.client.program import files_of, program_of
from superpipe_cluster.errors import BadInput, Conflict
from superpipe_cluster.spec import JobSpec
from superpipe_cluster.spec.fields import NAME_PATTERN

#: Planning a large model takes its time; the answer to a submit is waited for this long, seconds.
_SUBMIT_TIMEOUT_S = 600.0
#: How long the head may wait for more log before it answers a follower, seconds.
_LOG_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class LogPiece:
    """Some of a job's log: `text`, which ends right before byte `next_offset` of it."""

    text: str
    next_offset: int


class Client(ClusterCalls):
    """A user's view of one cluster.

    Args:
        url: address of the cluster; by default the one that the environment or the home directory names.
        token: who we are; by default as for `url`.
        on_retry: told what is wrong, once per outage, before requests are tried again.
        patience_s: how long a request is tried again when nobody answers, seconds.
        following_patience_s: the same for whoever follows: `logs(follow=True)`, `wait`, `show(patient=True)`.
        sleep: waits that many seconds.
        clock: monotonic seconds.

    Every method raises `NotRunning` when there is no cluster, `Unauthorized` when it does not know the token,
    and `StoreUnavailable` when its Redis is gone.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        on_retry: Callable[[str], None] | None = None,
        patience_s: float = PATIENCE_S,
        following_patience_s: float = FOLLOWING_PATIENCE_S,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        def find() -> Connection:
            # Asking the environment for what is given would fail where it has nothing to say.
            given = {"SPCLUSTER_URL": url, "SPCLUSTER_TOKEN": token}
            return find_cluster(
                {**os.environ, **{name: value for name, value in given.items() if value is not None}}
            )

        self._sleep = sleep
        self._clock = clock
        self._exchange = Exchange(
            find,
            on_retry=on_retry,
            patience_s=patience_s,
            following_patience_s=following_patience_s,
            sleep=sleep,
            clock=clock,
        )

    def __enter__(self) -> Self:
        """Use as a context manager to drop the connections at the end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Drop the connections."""
        self.close()

    def close(self) -> None:
        """Drop the connections."""
        self._exchange.close()

    # ---- jobs -------------------------------------------------------------------------------------

    def submit(
        self, job: JobSpec | str | Path, *, overrides: Sequence[str] = (), idempotency_key: str | None = None
    ) -> JobDetail:
        """Put a job in the queue.

        The files that it names must be on this machine, and its own worker program is sent as it is now.
        Repeating after a lost answer makes no second job: all tries of one call carry the same key.

        Args:
            job: a job, or the path of a job file.
            overrides: `a.b=value` for a job file.
            idempotency_key: what makes two calls the same submission; by default every call is one of its
                own.

        Raises:
            JobFileError: the job file has mistakes, all of them listed.
            FileMissing: a file that the job names is not there.
            NeverFits: no device of the cluster could ever hold it.
        """
        spec = job_files.load(Path(job), overrides=list(overrides)) if isinstance(job, str | Path) else job
        spec.local_files()
        body: dict[str, Any] = {"spec": job_files.dump(spec), "code": program_of(spec)}
        if files := files_of(spec):
            body["files"] = files  # an older head knows no such field, and other jobs need none
        key = idempotency_key or uuid.uuid4().hex
        answer = self._exchange.ask(
            "POST", "/v1/jobs", json=body, headers={"Idempotency-Key": key}, timeout_s=_SUBMIT_TIMEOUT_S
        )
        return JobDetail.model_validate_json(answer)

    def queue(self, *, ended: bool = False, user: str | None = None) -> list[JobView]:
        """Everybody's jobs, oldest first; with `ended` also those that are over."""
        params: dict[str, Any] = {"all": ended} | ({} if user is None else {"user": user_name(user)})
        return list(JobList.model_validate_json(self._exchange.ask("GET", "/v1/jobs", params=params)).jobs)

    def show(self, ref: str, *, patient: bool = False) -> JobDetail:
        """All about one job, named by its id or its name; if `patient`, outlasts a restart as a follower does.

        Raises:
            NotFound: there is none.
            Forbidden: it is somebody else's.
        """
        return JobDetail.model_validate_json(self._exchange.ask("GET", _path(ref), following=patient))

    def logs(
        self,
        ref: str,
        *,
        offset: int = 0,
        tail: int | None = None,
        follow: bool = False,
        wait_s: float = _LOG_WAIT_S,
    ) -> Iterator[LogPiece]:
        """The job's log from byte `offset` on, or its last `tail` lines, in pieces.

        With `follow`, goes on until the job is over, across restarts of the head, with no hole and no
        repetition; a piece with an empty text then means that there was no news for `wait_s` seconds.

        Raises:
            NotFound: there is no such job.
            Forbidden: it is somebody else's.
        """
        # The id, not the name: a newer job of the same name must not take over in the middle.
        job_id = self.show(ref).id
        params: dict[str, Any] = {"offset": offset} if tail is None else {"tail": tail}
        begun = False
        while True:
            if follow and begun:
                params["wait_s"] = wait_s
            answer = self._exchange.ask(
                "GET", f"{_path(job_id)}/logs", params=params, following=follow and begun
            )
            piece = LogView.model_validate_json(answer)
            if piece.text or follow:
                yield LogPiece(piece.text, piece.next_offset)
            if piece.ended or not (follow or piece.text):
                return
            params, begun = {"offset": piece.next_offset}, True

    def cancel(self, ref: str, *, force: bool = False) -> JobView:
        """Stop a job; with `force`, without letting it save first.

        Raises:
            NotFound: there is no such job.
            Forbidden: it is somebody else's.
            Conflict: it is over already.
        """
        before = self.show(ref)
        try:
            answer = self._exchange.ask("POST", f"{_path(before.id)}/cancel", json={"force": force})
        except Conflict:
            # The answer to a first try may have been lost in a restart of the head; then all is as asked.
            now = self.show(before.id)
            if now.state == "CANCELLED" and not before.is_over:
                return now
            raise
        return JobView.model_validate_json(answer)

    def hold(self, ref: str) -> JobView:
        """Keep a waiting job from starting, until it is released.

        Raises:
            NotFound: there is no such job.
            Forbidden: it is somebody else's.
            Conflict: it does not wait. The hint says what could be done instead; so it does for the four below.
        """
        return self._act(ref, "hold")

    def release(self, ref: str) -> JobView:
        """Put a held job back in line. Raises as `hold` does."""
        return self._act(ref, "release")

    def pause(self, ref: str) -> JobView:
        """Have a running job stand still at its next step; it keeps its bytes. Raises as `hold` does."""
        return self._act(ref, "pause")

    def resume(self, ref: str) -> JobView:
        """Let a paused job go on. Raises as `hold` does."""
        return self._act(ref, "resume")

    def requeue(self, ref: str) -> JobView:
        """Have a running job save, give its bytes back and wait for its turn again. Raises as `hold` does."""
        return self._act(ref, "requeue")

    def change(self, ref: str, **changes: Any) -> JobView:
        """Change what a job asks for, also while it runs.

        Args:
            ref: id or name.
            changes: new values of `priority`, `gpu_memory`, `time_limit`, `not_before`, `window`, `at_window_end`, as
                in a job file; None takes back what may be absent.

        Raises:
            BadInput: a value cannot be used.
            NeverFits: with the new memory it could never run.
            NotFound: there is no such job.
            Forbidden: it is somebody else's.
            Conflict: it has ended.
        """
        return JobView.model_validate_json(self._exchange.ask("PATCH", _path(ref), json=changes))

    def _act(self, ref: str, verb: str) -> JobView:
        return JobView.model_validate_json(self._exchange.ask("POST", f"{_path(ref)}/{verb}"))

    def wait(self, ref: str, *, timeout_s: float | None = None) -> JobDetail:
        """Wait until the job is over.

        Raises:
            TimeoutError: it is not, after `timeout_s` seconds.
            NotFound: there is no such job.
            Forbidden: it is somebody else's.
        """
        started, pause_s = self._clock(), 0.1
        job = self.show(ref)
        while not job.is_over:
            if timeout_s is not None:
                left_s = started + timeout_s - self._clock()
                if left_s <= 0:
                    raise TimeoutError(f"job {job.id} is still {job.state} after {timeout_s:g} s")
                pause_s = min(pause_s, left_s)
            self._sleep(pause_s)
            pause_s = min(pause_s * 1.5, 2.0)
            job = self.show(job.id, patient=True)
        return job


def _path(ref: str) -> str:
    # Checked here as well as there: in a URL, `..` and `?` would have become something else on the way.
    if re.fullmatch(NAME_PATTERN, ref) is None:
        raise BadInput(
            f"`{ref}` is neither the id nor the name of a job", hint="`spcluster queue -a` lists all jobs"
        )
    return f"/v1/jobs/{ref}"
