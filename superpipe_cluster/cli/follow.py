"""Following a job until it is over: its log on stdout, and how far it is.

Owns the progress bar (on a terminal) and the notes about changes of state (elsewhere, on stderr). The log
itself comes from the client, which lives through restarts of the head.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Protocol, Self

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from superpipe_cluster.api.views import JobDetail, JobView
from superpipe_cluster.cli import render
from superpipe_cluster.cli.main import INTERRUPTED
from superpipe_cluster.cli.outcome import sentence
from superpipe_cluster.cli.words import note
from superpipe_cluster.client import Client

#: How old the shown state of a job may become, seconds.
_REFRESH_S = 1.0


class _Display(Protocol):
    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def log(self, text: str) -> None:
        """Show a piece of the log."""
        ...

    def job(self, job: JobView) -> None:
        """Show how far the job is."""
        ...


def follow(
    client: Client, ref: str, *, tail: int | None = None, clock: Callable[[], float] = time.monotonic
) -> JobDetail:
    """Print the job's log until the job is over, and return how it ended.

    Raises:
        click.exceptions.Exit: Ctrl-C; the job goes on, which is said.
    """
    job = client.show(ref)
    display: _Display = _Bar() if sys.stdout.isatty() and sys.stderr.isatty() else _Lines()
    try:
        with display:
            display.job(job)
            shown_at = clock()
            for piece in client.logs(job.id, tail=tail, follow=True, wait_s=_REFRESH_S):
                display.log(piece.text)
                if clock() - shown_at >= _REFRESH_S:
                    display.job(client.show(job.id, patient=True))
                    shown_at = clock()
            job = client.show(job.id, patient=True)
            display.job(job)
    except KeyboardInterrupt:
        note(f"detached: job {job.id} goes on without us; `spcluster logs -f {job.id}` follows it again")
        raise click.exceptions.Exit(INTERRUPTED) from None
    note(sentence(job))
    return job


def print_log(text: str) -> None:
    """Print a piece of a log as it is: what colours a program wrote into it are its own affair."""
    click.echo(text, nl=False, color=True)


class _Lines:
    """For pipes and files: the log byte for byte on stdout, changes of state as notes on stderr."""

    def __init__(self) -> None:
        self._said = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def log(self, text: str) -> None:
        if text:
            print_log(text)

    def job(self, job: JobView) -> None:
        said = render.doing(job).plain
        # The end gets a sentence of its own from `follow`.
        if said != self._said and not job.is_over:
            note(f"job {job.id} ({job.name}) is {said}")
        self._said = said


class _Bar:
    """For terminals: the log scrolls, a bar below it shows the step, the loss and the time left."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(compact=True),
            console=render.console(),
            transient=True,
            expand=True,
        )
        self._task = self._progress.add_task("", total=None, loss="")
        self._rest = ""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._rest:
            self._print(self._rest)
            self._rest = ""
        self._progress.stop()

    def log(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._print(line)

    def _print(self, line: str) -> None:
        # A program's own progress bar rewrites its line; the last version of it is the one to keep.
        # `from_ansi` keeps colours and drops all else that could move the cursor.
        self._progress.console.print(Text.from_ansi(line.rsplit("\r", 1)[-1] if line else ""), soft_wrap=True)

    def job(self, job: JobView) -> None:
        loss = job.metrics.get("loss")
        self._progress.update(
            self._task,
            description=f"{job.id} {job.name[:20]} {render.doing(job).plain}",
            completed=job.step,
            total=job.steps,
            loss="" if loss is None else f"loss {loss:.4g}",
        )
