"""One mistake in a job, and how it is printed: `train.yaml:5:3: model.sorce: unknown field`.

Owns the form. Does not own where a path stands in a file (`document`) nor the words (`wording`, `files`).
"""

from __future__ import annotations

from dataclasses import dataclass

from superpipe_cluster.spec.base import FieldPath


@dataclass(frozen=True)
class Problem:
    """A mistake at a place in the job.

    Attributes:
        path: the field, empty for the job as a whole.
        message: what is wrong.
        hint: what to do about it.
        about_key: the field should not be there (the place is its name), rather than has a wrong value.
        meant: the field that was probably meant by an unknown one.
        lacks: the missing fields that this is about.
    """

    path: FieldPath
    message: str
    hint: str | None = None
    about_key: bool = False
    meant: FieldPath | None = None
    lacks: tuple[FieldPath, ...] = ()

    def text(self, where: str | None = None) -> str:
        """The mistake in words, behind its place where there is one."""
        parts = [part for part in (where, dotted(self.path), self.message) if part]
        return ": ".join(parts) + (f"\n    hint: {self.hint}" if self.hint else "")


def without_echoes(problems: list[Problem]) -> list[Problem]:
    """The problems without those that go with another: a misspelled field is not missing as well."""
    meant = {problem.meant for problem in problems if problem.meant is not None}
    return [problem for problem in problems if not meant.intersection(problem.lacks)]


def dotted(path: FieldPath) -> str:
    """`data.files[0]` for `("data", "files", 0)`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def counted(problems: int) -> str:
    """`1 mistake`, `5 mistakes`."""
    return f"{problems} mistake{'' if problems == 1 else 's'}"
