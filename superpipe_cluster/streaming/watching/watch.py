"""A dispatch mode that a thread enters once and stays in, whatever other modes it enters and leaves meanwhile.

Owns where in which thread's stack of modes the read guard stands. Modes are a matter of threads: each thread that runs
a streamed model joins when it first calls a module of it.

[Note: bottom of the stack] Modes are left in the order opposite to entering, by popping whatever is on top. A mode that
stays must not be on top when somebody leaves an older one, so it goes under all others.
"""

from __future__ import annotations

import threading
from typing import Any, cast

import torch
from torch._C._dynamo import eval_frame
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _python_dispatch as modes
from torch.utils._python_dispatch import TorchDispatchMode

_compiler: Any = eval_frame
_PYTHON = torch._C.DispatchKey.Python
_SNAPSHOT = torch._C.DispatchKey.PythonTLSSnapshot


class Watch(TorchDispatchMode):
    """Enter with `join()`, leave with `leave()`; not to be used in a `with`."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.local()
        self._home: int | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether torch should wrap `__torch_dispatch__` to hide it from the compiler.

        That costs a microsecond per operator and imports the compiler; marking the code costs nothing.
        """
        mark = getattr(_compiler, "set_code_exec_strategy", None)
        if mark is None:
            return True
        skip = _compiler._FrameAction.SKIP
        mark(cls.__torch_dispatch__.__code__, _compiler._FrameExecStrategy(skip, skip))
        return False

    def join(self) -> bool:
        """See the operators of this thread from now on.

        [Note: inference mode] Leaving `torch.inference_mode` puts the thread's dispatch keys back as they were when it
        was entered, and with them goes the key of every mode that was entered meanwhile, though it is still on the
        stack. As well comes back the key of every mode that was left meanwhile, and torch ends in an error at each
        operator of the thread if none is on the stack then. So nothing leaves within an inference mode.

        Returns:
            Whether that is only until `leave()`, which the caller owes: inside an operator that is written in Python,
            where its mode is off, it is seen what that operator does in turn.
        """
        if not hasattr(self._thread, "joined"):
            above = take_modes_off()
            if self._home is None:
                self._home = threading.get_ident()
                self.__enter__()
            else:  # the flags that `__enter__` sets are the process's, not the thread's
                modes._push_mode(self)
            put_modes_on(above)
            self._thread.joined = True
        elif not torch._C._len_torch_dispatch_stack():
            modes._push_mode(self)
            return True
        elif not torch._C._dispatch_tls_is_dispatch_key_included(_PYTHON):
            torch._C._dispatch_tls_set_dispatch_key_included(_PYTHON, True)
            torch._C._dispatch_tls_set_dispatch_key_included(_SNAPSHOT, True)
        return False

    def leave_operator(self) -> None:
        """Undo a `join()` that was for a while."""
        modes._pop_mode()

    def leave(self) -> None:
        """Stop seeing the operators of this thread; without effect in an inference mode, see [Note: inference mode]."""
        if not hasattr(self._thread, "joined") or torch.is_inference_mode_enabled():
            return
        above = [mode for mode in take_modes_off() if mode is not self]
        if self._home == threading.get_ident():
            modes._push_mode(self)
            self.__exit__(None, None, None)
            self._home = None
        put_modes_on(above)
        del self._thread.joined


def take_modes_off() -> list[TorchDispatchMode]:
    """Take all modes off this thread's stack, the top one first.

    But for that of tensors without memory (a forecast records under it): torch keeps it below all others, and without
    it what is made meanwhile would take memory.
    """
    taken: list[TorchDispatchMode] = []
    for _ in range(torch._C._len_torch_dispatch_stack()):
        mode = cast(TorchDispatchMode, modes._pop_mode())
        if isinstance(mode, FakeTensorMode):
            modes._push_mode(mode)
            break
        taken.append(mode)
    return taken


def put_modes_on(taken: list[TorchDispatchMode]) -> None:
    """Undo `take_modes_off()`."""
    for mode in reversed(taken):
        modes._push_mode(mode)
