"""One act on several jobs: hold, release, pause, resume, requeue, cancel, set.

Owns which jobs a reference means, that all of them are tried, what is printed of each, and that the worst failure is
the exit code. What the act is belongs to the verb.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import click

from superpipe_cluster.cli.options import open_client
from superpipe_cluster.cli.words import error, hint
from superpipe_cluster.errors import Conflict, Forbidden, NotFound, SpclusterError

if TYPE_CHECKING:
    from superpipe_cluster.api.views import JobView
    from superpipe_cluster.client import Client

Act = Callable[["Client", str], "JobView"]


def meant(client: Client, ref: str) -> tuple[str, ...]:
    """The ids of the jobs that `ref` means: the id or the name of an array means all its tasks, `12_4` means one.

    Raises:
        NotFound: there is no such job.
        Forbidden: it is somebody else's.
    """
    job = client.show(ref)
    return job.tasks if job.array is not None and job.tasks and ref in (job.array, job.name) else (job.id,)


def on_each(refs: Sequence[str], act: Act) -> int:
    """Do `act` to every job, print where that leaves it, and return the exit code."""
    worst = 0
    with open_client() as client:
        from superpipe_cluster.cli import render

        for ref in refs:
            try:
                for job in _done(client, ref, act):
                    click.echo(f"{render.shown_id(job)} {job.name} {render.doing(job)}")
            except (NotFound, Forbidden, Conflict) as failure:
                _say(failure)
                worst = max(worst, failure.exit_code)
    return worst


def _done(client: Client, ref: str, act: Act) -> Iterator[JobView]:
    """The jobs that were acted on. Of an array, those that it makes sense for; a Conflict when it does for none."""
    refused: Conflict | None = None
    done = 0
    for job_id in meant(client, ref):
        try:
            yield act(client, job_id)
            done += 1
        except Conflict as conflict:
            refused = refused or conflict
    if refused is not None and not done:
        raise refused


def _say(failure: SpclusterError) -> None:
    error(failure.message)
    if failure.hint:
        hint(failure.hint)
