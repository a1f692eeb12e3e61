"""Weights in safetensors files: what is in them, and reading one tensor straight to where it belongs.

Owns the format: eight bytes with the length of a JSON header, the header with each tensor's type, shape and place, then
the bytes. Everything is checked when the files are opened, so that a damaged one is found before anything has moved.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override

from superpipe_cluster.errors import BadInput, FileMissing
from superpipe_cluster.streaming.homes.memory import bytes_of_tensor

_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_LONGEST_HEADER_BYTES = 100 << 20  # the format's own limit
_CHUNK_BYTES = 1 << 20
_INDEX = "*.safetensors.index.json"
_USUAL = "model.safetensors"
_HINT = "download or write the file again"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file.

    Attributes:
        name: as the file has it.
        path: the file.
        identity: of the file: the same as long as it is unchanged.
        dtype: type of its numbers.
        shape: its shape.
        start_bytes: where in the file it begins.
        nbytes: how long it is there.
    """

    name: str
    path: Path
    identity: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start_bytes: int
    nbytes: int

    def read_into(self, into: torch.Tensor) -> None:
        """Read it into memory of its shape, converting to the type there; no second copy of it is made.

        A tensor whose memory is not in the order of its indices (`channels_last`) is the exception.

        Raises:
            FileMissing: the file cannot be read any more.
            BadInput: it has become shorter.
        """
        if not into.numel():
            return
        if not into.is_contiguous():
            ordered = torch.empty(into.shape, dtype=into.dtype, device="cpu")
            self.read_into(ordered)
            into.copy_(ordered)
            return
        try:
            with self.path.open("rb", buffering=0) as file:
                if into.dtype == self.dtype:
                    self._read(file.fileno(), bytes_of_tensor(into), 0)
                else:
                    self._convert(file.fileno(), into.view(-1))
        except OSError as error:
            raise FileMissing(f"weights: {self.path}: {error.strerror}", hint=_HINT) from error

    def _convert(self, file: int, into: torch.Tensor) -> None:
        count = _CHUNK_BYTES // self.dtype.itemsize
        chunk = torch.empty(min(count, into.numel()), dtype=self.dtype, device="cpu")
        for start in range(0, into.numel(), count):
            part = chunk[: into.numel() - start]
            self._read(file, bytes_of_tensor(part), start * self.dtype.itemsize)
            into[start : start + part.numel()].copy_(part)

    def _read(self, file: int, content: memoryview, start: int) -> None:
        while content:
            count = os.preadv(file, [content], self.start_bytes + start)
            if count == 0:
                raise BadInput(f"weights: {self.path} has become shorter: {self.name} is cut", hint=_HINT)
            content, start = content[count:], start + count


class WeightFiles(Mapping[str, StoredTensor]):
    """The tensors of a safetensors file, or of a folder with one, or with several and an index of them.

    Raises:
        FileMissing: there is no such file, or none in the folder.
        BadInput: a file is damaged; the message names it and the tensor.
    """

    def __init__(self, path: Path) -> None:
        self._tensors: dict[str, StoredTensor] = {}
        for file, names in _files_of(path).items():
            found = _read_header(file)
            for name in found if names is None else names:
                if name not in found:
                    raise BadInput(
                        f"weights: the index says that {name} is in {file}, and it is not", hint=_HINT
                    )
                if name in self._tensors:
                    raise BadInput(
                        f"weights: {name} is in {self._tensors[name].path} and in {file}",
                        hint="name the file that is meant",
                    )
                self._tensors[name] = found[name]

    @override
    def __getitem__(self, name: str) -> StoredTensor:
        return self._tensors[name]

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    @override
    def __len__(self) -> int:
        return len(self._tensors)


def _files_of(path: Path) -> dict[Path, list[str] | None]:
    """The files, each with the names to take from it; None for all."""
    if path.is_file():
        return {path: None}
    indices, single = sorted(path.glob(_INDEX)), sorted(path.glob("*.safetensors"))
    if (path / _USUAL).exists():
        return {path / _USUAL: None}
    if indices:
        return _indexed(indices[0])
    if not single:
        raise FileMissing(
            f"weights: no .safetensors file {'in' if path.is_dir() else 'at'} {path}",
            hint="name a .safetensors file, or a folder with one",
        )
    return dict.fromkeys(single)


def _indexed(index: Path) -> dict[Path, list[str] | None]:
    try:
        places: Any = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files: dict[Path, list[str] | None] = {}
        for name, file in places.items():
            names = files.setdefault(index.parent / file, [])
            assert names is not None
            names.append(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"weights: {index} is no index of safetensors files: {error}", hint=_HINT) from error
    return files


def _read_header(path: Path) -> dict[str, StoredTensor]:
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            length = int.from_bytes(file.read(8), "little")
            if found.st_size < 8 or length > min(found.st_size - 8, _LONGEST_HEADER_BYTES):
                raise BadInput(
                    f"weights: {path} is no safetensors file, or cut short: {found.st_size} bytes, its header should "
                    f"have {length}",
                    hint=_HINT,
                )
            header = file.read(length)
    except OSError as error:
        raise FileMissing(
            f"weights: cannot read {path}: {error.strerror}", hint="name a file that is there"
        ) from error
    try:
        entries: Any = json.loads(header)
        entries.pop("__metadata__", None)
    except (ValueError, AttributeError) as error:
        raise BadInput(
            f"weights: {path} is no safetensors file: its header is not JSON", hint=_HINT
        ) from error
    identity = f"{path.resolve()} {found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns}"
    return {
        name: _tensor(path, identity, found.st_size, 8 + length, name, entry)
        for name, entry in entries.items()
    }


def _tensor(path: Path, identity: str, size: int, data: int, name: str, entry: Any) -> StoredTensor:
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        well_formed = all(isinstance(one, int) and one >= 0 for one in (*shape, begin, end)) and begin <= end
    except (TypeError, KeyError, ValueError):
        well_formed = False
        dtype, shape, begin, end = "", (), 0, 0
    if not well_formed:
        raise BadInput(f"weights: {path}: the entry of {name} is not understood: {entry}", hint=_HINT)
    if dtype not in _DTYPES:
        raise BadInput(
            f"weights: {path}: {name} is of the unknown type {dtype}", hint="convert the file to BF16 or F32"
        )
    needed = math.prod(shape) * _DTYPES[dtype].itemsize
    if end - begin != needed:
        raise BadInput(
            f"weights: {path}: {name} is {dtype} {list(shape)}, which is {needed} bytes, and has {end - begin}",
            hint=_HINT,
        )
    if data + end > size:
        raise BadInput(
            f"weights: {path} is cut short: {name} ends at byte {data + end}, and the file has {size}",
            hint=_HINT,
        )
    return StoredTensor(name, path, identity, _DTYPES[dtype], shape, data + begin, needed)
