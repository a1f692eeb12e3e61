"""`spcluster`: the list of verbs, and what happens when one ends.

Owns the table of verbs (so that `--help` loads none of them), the printing of errors and the exit code. What
a verb does is in its own file.

Exit codes: 0 done; 1 failed; 2 bad input; 3 no such thing, or not now; 4 can never run; 5 no cluster; 6 not
allowed; 130 interrupted or cancelled.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from superpipe_cluster import __version__
from superpipe_cluster.cli.words import error, hint
from superpipe_cluster.errors import JobFileError, SpclusterError

#: Verb -> its line in the help. Each has a module of its name in `verbs/`.
VERBS = {
    "up": "Start a cluster on this machine.",
    "down": "Stop the cluster.",
    "doctor": "Check this machine and the cluster.",
    "plan": "Say what a job takes at every budget.",
    "submit": "Put a job in the queue.",
    "queue": "List the jobs.",
    "top": "Show the devices right now.",
    "show": "Show all about a job.",
    "logs": "Print a job's log.",
    "wait": "Wait until jobs are over.",
    "cancel": "Stop jobs.",
    "set": "Change what a job asks for.",
    "hold": "Keep waiting jobs from starting.",
    "release": "Put held jobs back in line.",
    "pause": "Have running jobs stand still.",
    "resume": "Have paused jobs go on.",
    "requeue": "Have running jobs save and wait again.",
    "events": "Show what happens.",
    "usage": "Show who has used how much.",
    "gpus": "List the devices and who holds them.",
    "examples": "List the job files that come along.",
    "cp": "Copy one of the job files that come along.",
    "schema": "Print the JSON schema of job files.",
    "user": "Add and list users.",
    "quota": "Show and set what each user may hold.",
    "windows": "Show and set hours in which batch jobs run.",
}

INTERRUPTED = 130


class LazyGroup(click.Group):
    """A group that knows its verbs by name and loads the one that is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs in the order of the table, which is that of a first day with the program."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one verb."""
        if cmd_name not in VERBS:
            return None
        return import_module(f"superpipe_cluster.cli.verbs.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of verbs from the table: the inherited way would load all of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb; one that is not there gets a suggestion."""
        if args and not args[0].startswith("-") and args[0] not in VERBS:
            import difflib

            close = difflib.get_close_matches(args[0], VERBS, n=1)
            advice = (
                f"did you mean `spcluster {close[0]}`?" if close else "`spcluster --help` lists the commands"
            )
            raise click.UsageError(f"there is no command `{args[0]}`\nhint: {advice}", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="spcluster")
def cli() -> None:
    """Many models, each larger than its share, side by side on one GPU.

    \b
    A first day:  spcluster up
                  spcluster examples
                  spcluster submit jobs:train -f
                  spcluster queue
    """


def main() -> None:
    """The program: run the verb of the command line and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character shows a question mark, and the command goes on.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.exit(run(sys.argv[1:]))


def run(args: Sequence[str]) -> int:
    """Run one command line; errors are printed, never raised, unless they are bugs."""
    try:
        code = cli.main(args=list(args), prog_name="spcluster", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except SpclusterError as failure:
        return _print_error(failure)
    except click.ClickException as failure:
        return _print_usage(failure)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read us (`| head`) has enough. Python flushes stdout once more on its way out: into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _print_error(failure: SpclusterError) -> int:
    error(failure.message)
    if isinstance(failure, JobFileError):
        for problem in failure.problems:
            click.echo(problem, err=True)
    if failure.hint:
        hint(failure.hint)
    return failure.exit_code


def _print_usage(failure: click.ClickException) -> int:
    message, _, advice = failure.format_message().partition("\nhint: ")
    error(message[:1].lower() + message[1:])
    context = failure.ctx if isinstance(failure, click.UsageError) else None
    if advice:
        hint(advice)
    elif context is not None:
        hint(f"`{context.command_path} --help` explains")
    return failure.exit_code
