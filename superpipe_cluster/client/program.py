"""The user's own worker program, or the files of their script, on their way to the cluster.

Owns reading them and what they may be. Which files they are, the job says; where they run, the head.
"""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path
from typing import Any

from superpipe_cluster.api.views import MAX_BODY_BYTES, PROGRAM_NAME_PATTERN
from superpipe_cluster.errors import BadInput, FileMissing
from superpipe_cluster.spec import JobSpec, ScriptJob

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


def files_of(spec: JobSpec) -> list[dict[str, Any]]:
    """The files that travel with a script, as `POST /v1/jobs` takes them; none for other jobs.

    Raises:
        FileMissing: one cannot be read.
        BadInput: together they are too large.
    """
    if not isinstance(spec, ScriptJob):
        return []
    folder, found, left = Path(spec.folder or "."), [], _MOST_BYTES
    for path in spec.travelling():
        try:
            data = (folder / path).read_bytes()
        except OSError as error:
            raise FileMissing(
                f"{folder / path}, which travels with the script, cannot be read ({error.strerror})",
                hint="check its permissions",
            ) from None
        left -= len(data)
        if left < 0:
            raise BadInput(
                f"with {folder / path} ({len(data)} bytes), the files of the script have more than {_MOST_BYTES} bytes",
                hint="code travels; data is named by an absolute path, and used where it is",
            )
        content = base64.b64encode(data).decode()
        executable = os.access(folder / path, os.X_OK)
        found.append({"path": path, "content": content, "executable": executable})
    return found
