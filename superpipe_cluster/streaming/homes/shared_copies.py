"""One copy of the same bytes for all processes of one user on a machine, held by nothing but those that use it.

Owns finding a copy by its name, or making it. What is in it and who may write where is `homes`'.

[Note: who keeps a copy] A copy is a memfd: memory with a descriptor and no path. The kernel counts who holds it, and
frees it with the last holder, however that one ends. It is found through a registry of `name pid descriptor`, a file
in a folder of this user's, and opened as `/proc/PID/fd/DESCRIPTOR`. A line of the registry is a hint and never trusted:
what it leads to must be a memfd of that name and size, of this user. So lines of processes that were killed do no harm,
even if their pid and descriptor are somebody else's by now.

[Note: filled] A copy is locked while it is filled and sealed when it is full. Whoever finds one waits for the lock,
which the kernel takes from a process that dies, and if the copy is not sealed then, fills it again. A seal is for good:
not even its maker can change a full copy, so no sharer can.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from superpipe_cluster.errors import BadInput
from superpipe_cluster.streaming.homes.memory import HostMemory

_FULL = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_MFD_NOEXEC_SEAL = 8  # since Linux 6.3; a system may insist on it
_PREFIX = "superpipe_cluster:"


class SharedCopies:
    """The copies that this process uses; each has an open descriptor here.

    Args:
        folder: where the registry is; by default one folder per user, machine and pid namespace.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder if folder is not None else _default_folder()
        self._registry = self._folder / "registry"
        self._own: dict[int, str] = {}
        with self._locked():
            self._clean()

    def find_or_fill(self, name: str, nbytes: int, fill: Callable[[torch.Tensor], None]) -> int:
        """The descriptor of the full copy called `name`; give it back with `let_go`.

        Args:
            name: what is in it, 64 characters at most.
            nbytes: its size.
            fill: writes the bytes into `uint8[nbytes]`, zero or partly written before, if nobody has them yet.
        """
        with self._locked():
            file = self._find(name, nbytes)
            if file is None:
                file = _new_memfd(_PREFIX + name)
                os.ftruncate(file, nbytes)
            with self._registry.open("a") as registry:
                registry.write(f"{name} {os.getpid()} {file}\n")
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_full(file):
                memory = HostMemory.of_file(file, nbytes, shared=True, writable=True)
                memory.keep_from_children()  # theirs would keep it from being sealed
                fill(memory.tensor)
                del memory
                fcntl.fcntl(file, fcntl.F_ADD_SEALS, _FULL)
            fcntl.flock(file, fcntl.LOCK_UN)
        except BaseException:
            os.close(file)
            raise
        self._own[file] = name
        return file

    def let_go(self, file: int) -> None:
        """Close a descriptor; mappings of it stay."""
        del self._own[file]
        os.close(file)

    def close(self) -> None:
        """Let go of everything, and leave no trace if this was the last user."""
        for file in list(self._own):
            self.let_go(file)
        with self._locked():
            self._clean()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _find(self, name: str, nbytes: int) -> int | None:
        for line in self._lines():
            if line.startswith(name + " "):
                file = _open(line, nbytes)
                if file is not None:
                    return file
        return None

    def _lines(self) -> list[str]:
        try:
            return self._registry.read_text().splitlines()
        except FileNotFoundError:
            return []

    def _clean(self) -> None:
        """Take out what leads nowhere."""
        lines = self._lines()
        living = [line for line in lines if _leads_to(line) is not None]
        if not living:
            self._registry.unlink(missing_ok=True)
        elif len(living) < len(lines):
            whole = self._registry.with_name("registry.new")
            whole.write_text("".join(f"{line}\n" for line in living))
            whole.replace(self._registry)


def _default_folder() -> Path:
    place = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
    folder = place / f"superpipe_cluster-{os.geteuid()}-{os.stat('/proc/self/ns/pid').st_ino}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise BadInput(
            f"{folder} is not a folder of this user's alone", hint='remove it, or stream with host="pinned"'
        )
    return folder


def _new_memfd(name: str) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
    except OSError:  # an older kernel
        return os.memfd_create(name, flags)


def _leads_to(line: str) -> str | None:
    """The path of the copy that a line of the registry names, if it is there."""
    parts = line.split(" ")
    if len(parts) != 3:
        return None  # cut short by a death
    path = f"/proc/{parts[1]}/fd/{parts[2]}"
    try:
        target = os.readlink(path)
    except OSError:
        return None
    return path if target == f"/memfd:{_PREFIX}{parts[0]} (deleted)" else None


def _open(line: str, nbytes: int) -> int | None:
    path = _leads_to(line)
    if path is None:
        return None
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # it went just now, or its process lets nobody in
        return None
    found = os.fstat(file)
    is_memfd = f"/memfd:{_PREFIX}{line.split(' ')[0]} (deleted)" == os.readlink(f"/proc/self/fd/{file}")
    if is_memfd and found.st_size == nbytes and found.st_uid == os.geteuid():
        return file
    os.close(file)
    return None


def _is_full(file: int) -> bool:
    return fcntl.fcntl(file, fcntl.F_GET_SEALS) & _FULL == _FULL
