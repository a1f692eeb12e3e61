"""Pieces of host memory: mapped by the kernel to the byte (in whole pages), unmapped with their last tensor.

Owns the mapping. What is kept in it, for whom and for how long, is the homes' (`homes`).

Neither torch's allocators nor `malloc` will do. The pinned one rounds up to powers of two and can double host RAM;
`malloc` keeps freed blocks and puts several tensors on one page, and a page cannot be registered twice.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref

import torch

from superpipe_cluster.errors import HostMemoryTooSmall

_MAP_FIXED = 0x10
_READ = mmap.PROT_READ
_READ_AND_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
_M_MMAP_THRESHOLD = -3
_LARGE_BLOCK_BYTES = 128 << 10  # where glibc starts, before it adapts
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class HostMemory:
    """Mapped host memory.

    Attributes:
        nbytes: its size; the mapping is rounded up to whole pages.
        address: where it starts, a page boundary.
        tensor: all of it, `uint8[nbytes]`. The memory lives as long as any tensor on it.
    """

    def __init__(
        self, nbytes: int, protection: int, flags: int, file: int = -1, offset_bytes: int = 0
    ) -> None:
        nbytes = max(nbytes, 1)  # no mapping is empty
        self.nbytes = nbytes
        self.address = _map(None, nbytes, protection, flags, file, offset_bytes)
        array = (ctypes.c_char * nbytes).from_address(self.address)
        # The tensor's storage keeps the array alive, and the array's death ends the mapping.
        weakref.finalize(array, _libc.munmap, self.address, nbytes).atexit = False
        with torch.inference_mode(False):  # it outlives an inference mode that the program may be in
            self.tensor = torch.frombuffer(array, dtype=torch.uint8)

    @classmethod
    def anonymous(cls, nbytes: int, *, shared_with_children: bool = False) -> HostMemory:
        """Memory of this process alone, zero.

        Args:
            nbytes: how much.
            shared_with_children: keep the same pages when the process forks, instead of copying them on write: a GPU
                goes on with the pages that it was told of.
        """
        sharing = mmap.MAP_SHARED if shared_with_children else mmap.MAP_PRIVATE
        return cls(nbytes, _READ_AND_WRITE, sharing | mmap.MAP_ANONYMOUS)

    @classmethod
    def of_file(
        cls, file: int, nbytes: int, *, offset_bytes: int = 0, shared: bool, writable: bool
    ) -> HostMemory:
        """A part of an open file.

        Args:
            file: its descriptor; it may be closed afterwards.
            nbytes: how much of it.
            offset_bytes: from where, a page boundary.
            shared: whether what is written reaches the file; if not, a page that is written becomes this process's own.
            writable: whether it may be written; without, writing ends the process.
        """
        protection = _READ_AND_WRITE if writable else _READ
        return cls(nbytes, protection, mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE, file, offset_bytes)

    def bytes_at(self, offset_bytes: int, nbytes: int) -> memoryview:
        """A part of it, for reading from and writing to files; valid while the memory is."""
        return memoryview((ctypes.c_char * nbytes).from_address(self.address + offset_bytes)).cast("B")

    def leave_to_file(self) -> None:
        """Keep none of a shared file's bytes in this process; they are read again when they are looked at."""
        _libc.madvise(self.address, self.nbytes, mmap.MADV_DONTNEED)

    def keep_from_children(self) -> None:
        """A child that is forked from now on does not have this memory."""
        _libc.madvise(self.address, self.nbytes, mmap.MADV_DONTFORK)

    def make_private(self, file: int) -> None:
        """Map `file` from its start in place of what is mapped, writable, with no write reaching the file.

        The address stays, and with it every tensor.
        """
        _map(self.address, self.nbytes, _READ_AND_WRITE, mmap.MAP_PRIVATE | _MAP_FIXED, file, 0)


def bytes_of_tensor(tensor: torch.Tensor) -> memoryview:
    """The memory of a dense tensor on the CPU, in the order in which it lies there; valid while the tensor is."""
    start = tensor.untyped_storage().data_ptr() + int(tensor.storage_offset()) * tensor.element_size()
    return memoryview((ctypes.c_char * tensor.nbytes).from_address(start)).cast("B")


def trim_heap() -> None:
    """Give freed memory back to the system.

    `malloc` keeps a freed block that lies below one in use, and a model is freed tensor by tensor.
    """
    trim = getattr(_libc, "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def return_large_blocks() -> None:
    """Have `malloc` give each large block back when it is freed, from now on and for the whole process.

    That costs page faults for each; it is for processes that are short of memory. Left to itself, glibc puts blocks of
    up to 32 MiB on its heap, where a hole that an aligned block leaves is too small for the next one of its size.
    """
    set_option = getattr(_libc, "mallopt", None)  # glibc's
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)


def _map(address: int | None, nbytes: int, protection: int, flags: int, file: int, offset_bytes: int) -> int:
    mapped = _libc.mmap(address, nbytes, protection, flags, file, offset_bytes)
    if mapped is None or mapped == _FAILED:
        code = ctypes.get_errno()
        raise HostMemoryTooSmall(
            f"no room for {nbytes} more bytes of host memory: {os.strerror(code)}",
            hint='give the process more memory (ulimit -d, ulimit -v, its cgroup), or use files: host="disk"',
        )
    return mapped
