"""What an exception that ended a program means: the reason, the sentence, and what is printed of it.

Owns the mapping to `EndReason`. Imports no torch: a program that never did cannot have met its errors.
"""

from __future__ import annotations

import sys
import traceback

from superpipe_cluster.errors import BadInput, DeviceOutOfMemory, NeverFits, SpclusterError, StaleWrite
from superpipe_cluster.lifecycle.states import EndReason


def reason_of(error: BaseException) -> EndReason:
    """Why a job ends when its program ends by `error`."""
    torch = sys.modules.get("torch")
    out_of_memory: tuple[type[BaseException], ...] = (DeviceOutOfMemory, MemoryError)
    if torch is not None and isinstance(getattr(torch, "OutOfMemoryError", None), type):
        out_of_memory = (*out_of_memory, torch.OutOfMemoryError)
    if isinstance(error, out_of_memory):
        return EndReason.OOM
    if isinstance(error, StaleWrite):
        return EndReason.WORKER_LOST
    if isinstance(error, NeverFits):
        return EndReason.NEVER_FITS
    if isinstance(error, BadInput):
        return EndReason.BAD_INPUT
    return EndReason.ERROR


def sentence_of(error: BaseException) -> str:
    """`error` in one sentence."""
    return error.message if isinstance(error, SpclusterError) else f"{type(error).__name__}: {error}"


def print_error(error: BaseException) -> None:
    """What the log shows: sentence and hint of an error that is made for people, the traceback of any other."""
    if isinstance(error, SpclusterError):
        sys.stderr.write(f"error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
    else:
        traceback.print_exception(error)
    sys.stderr.flush()
