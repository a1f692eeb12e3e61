"""Where results go: refused before the work, not after it, when they could not be written there.

Owns that check alone. What is written is the worker program's.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from superpipe_cluster.errors import BadInput


def require_writable(folder: Path, file: str | None = None) -> None:
    """Make an output folder, and refuse it if nothing can be written there, or not the file of this name.

    Raises:
        BadInput: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        if file is not None:
            (folder / file).open("ab").close()
    except OSError as error:
        raise BadInput(
            f"output: cannot write {folder if file is None else folder / file}: {error.strerror}",
            hint="name a folder of your own in `output`, or leave it out",
        ) from error
