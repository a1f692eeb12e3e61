"""A command or a Python file of the user's: `kind: script`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field, WithJsonSchema

from superpipe_cluster.spec import commands
from superpipe_cluster.spec.base import Complaint, refused
from superpipe_cluster.spec.fields import Text
from superpipe_cluster.spec.job_base import JobBase


def _command(value: object) -> str | tuple[str, ...]:
    if isinstance(value, str) and value.strip() and "\0" not in value:
        return value
    if isinstance(value, list | tuple):
        words: tuple[object, ...] = tuple(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        if words and words[0] and all(isinstance(word, str) and "\0" not in word for word in words):
            return tuple(str(word) for word in words)
    raise refused("expected a command, or a list of its words", "write run: python my_train.py --lr 1e-3")


#: A command, as in a shell, or word by word.
Command = Annotated[
    str | tuple[str, ...],
    BeforeValidator(_command),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
            ]
        }
    ),
]


class ScriptJob(JobBase):
    """Run a command."""

    kind: Literal["script"]  # pyright: ignore[reportIncompatibleVariableOverride]
    """The kind of work."""
    worker: Literal["script"] = "script"  # pyright: ignore[reportIncompatibleVariableOverride]
    """The program that runs the command."""
    run: Command
    """The command, `python my_train.py --lr 1e-3`: as in a shell, or a list of words. It runs in the output folder."""
    folder: Text | None = None
    """Where the files of the command are; by default the folder of the job file."""
    files: tuple[Text, ...] = ()
    """More files, folders and globs in `folder` that travel along, beside those that the command names."""
    venv: Text | None = None
    """A virtual environment that is there already, by its folder; null for the cluster's own Python."""
    pip: tuple[Text, ...] = Field(default=())
    """Packages to install for this job on top of the cluster's own, as for pip: `["einops>=0.8"]`."""

    @classmethod
    def rules(cls, given: Mapping[str, object]) -> Iterator[Complaint]:
        """Nobody can plan a command, so its memory is given; and it has one environment."""
        yield from super().rules(given)
        resources = given.get("resources")
        asked = cast("dict[str, Any]", resources).get("gpu_memory") if isinstance(resources, dict) else None
        if asked in (None, "auto"):
            hint = "write resources: {gpu_memory: 4GiB..8GiB}, guaranteed..wanted"
            message = "needs a size: how much device memory a script takes cannot be known before it runs"
            yield Complaint(("resources", "gpu_memory"), message, hint, lacks=((),))
        run = given.get("run")
        if isinstance(run, str) and not commands.is_closed(run):
            yield Complaint(
                ("run",), "a quote in the command is not closed", "close it, or write a list of words"
            )
        if given.get("venv") and given.get("pip"):
            hint = "install the packages in the venv, or leave it out"
            yield Complaint(("pip",), "given beside a venv, but a job has one environment", hint)

    def travelling(self) -> list[str]:
        """The files that travel with the job, relative to `folder`. See [Note: which files travel] in `commands`."""
        return commands.travelling(self.run, self.files, Path(self.folder or "."))
