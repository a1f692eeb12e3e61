"""The user's own worker program, on its way to the cluster.

Owns reading it and what it may be. Which file it is, the job says; where it runs, the head.
"""

from __future__ import annotations

import re

from superpipe_cluster.api.views import MAX_BODY_BYTES, PROGRAM_NAME_PATTERN
from superpipe_cluster.errors import BadInput, FileMissing
from superpipe_cluster.spec import JobSpec

#: In JSON a character may take several bytes; with half of the limit a program of ordinary text always
#: passes.
_MOST_BYTES = MAX_BODY_BYTES // 2


def program_of(spec: JobSpec) -> dict[str, str] | None:
    """The text of the user's own worker program, as `POST /v1/jobs` takes it; None for a bundled worker.

    Raises:
        FileMissing: the program cannot be read.
        BadInput: it is not a text that could be one.
    """
    path = spec.own_program
    if path is None:
        return None
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileMissing(
            f"the worker program {path} cannot be read ({error.strerror})",
            hint="`worker:` is the name of a bundled worker or the path of your own program",
        ) from None
    if re.fullmatch(PROGRAM_NAME_PATTERN, path.name) is None:
        raise BadInput(
            f"`{path.name}` cannot be a program's name", hint="use up to 60 plain characters: mine.py"
        )
    if len(data) > _MOST_BYTES:
        raise BadInput(
            f"the worker program {path} has {len(data)} bytes, at most {_MOST_BYTES} are sent",
            hint="keep data in files of its own; the program is one Python file",
        )
    try:
        return {"name": path.name, "text": data.decode("utf-8")}
    except UnicodeDecodeError:
        raise BadInput(f"the worker program {path} is not UTF-8 text", hint="it is one Python file") from None
