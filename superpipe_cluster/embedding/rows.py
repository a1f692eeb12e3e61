"""The rows of an embed job: texts or images in local files, read where they are needed.

Owns what a row is and what its id is; `datasets` reads tables, Pillow images. Everything that can be known to be wrong
is said when the rows are opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from superpipe_cluster.errors import BadInput, FileMissing, first_line
from superpipe_cluster.spec import EmbedSection, files

if TYPE_CHECKING:
    from PIL.Image import Image

#: The builder of `datasets` that reads a table.
_TABLES = {".jsonl": "json", ".ndjson": "json", ".csv": "csv", ".parquet": "parquet"}


class Rows(Protocol):
    """What is to be embedded, row by row."""

    def __len__(self) -> int:
        """How many rows there are."""
        ...

    def read(self, start: int, stop: int) -> list[Any]:
        """The texts or images of some rows."""
        ...

    def ids(self) -> Iterator[int | str]:
        """The ids of all rows, in their order."""
        ...

    def longest_bytes(self) -> int:
        """Bytes of the longest text; 0 for images."""
        ...


def open_rows(settings: EmbedSection) -> Rows:
    """The rows that an embed section names.

    Raises:
        FileMissing: a file is not there, or cannot be read as what it should be.
        BadInput: there is no row, no such column, or something else in it.
    """
    of_texts = settings.texts is not None
    name = "embed.texts" if of_texts else "embed.images"
    paths = [path for pattern in settings.texts or settings.images or () for path in _expand(pattern, name)]
    kinds = {_kind(path, of_texts) for path in paths}
    if len(kinds) > 1:
        raise BadInput(
            f"{name}: {', '.join(sorted(kinds))} files in one job", hint="make a job of each kind of file"
        )
    kind = kinds.pop()
    rows = (
        _FileRows(paths, of_texts, name)
        if kind == "single"
        else _TableRows(paths, kind, settings, of_texts=of_texts, name=name)
    )
    if not len(rows):
        raise BadInput(
            f"{name}: no rows in {', '.join(map(str, paths))}", hint="name files that are not empty"
        )
    return rows


def _expand(pattern: str, name: str) -> list[Path]:
    found = files.expand(pattern)
    if name == "embed.images" and os.path.isdir(pattern):  # a folder may have other files too
        found = [path for path in found if path.suffix.lower() in _image_suffixes()]
    if not found:
        raise FileMissing(f"{name}: nothing to embed in {pattern}", hint="name a file, a glob or a folder")
    return found


def _kind(path: Path, of_texts: bool) -> str:
    if path.suffix.lower() in _TABLES:
        return _TABLES[path.suffix.lower()]
    return "text" if of_texts and path.suffix.lower() == ".txt" else "single"


def _image_suffixes() -> set[str]:
    from PIL import Image

    return set(Image.registered_extensions())


class _FileRows:
    """Each file is a row, and its path below the folder that holds them all is its id."""

    def __init__(self, paths: Sequence[Path], of_texts: bool, name: str) -> None:
        self._paths, self._of_texts, self._name = list(dict.fromkeys(paths)), of_texts, name
        for path in self._paths:
            self._try(path, _check_text if of_texts else _check_image)

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, start: int, stop: int) -> list[Any]:
        read = _read_text if self._of_texts else _read_image
        return [self._try(path, read) for path in self._paths[start:stop]]

    def ids(self) -> Iterator[str]:
        above = os.path.commonpath([path.parent for path in self._paths])
        for path in self._paths:
            yield path.relative_to(above).as_posix()

    def longest_bytes(self) -> int:
        return max(path.stat().st_size for path in self._paths) if self._of_texts else 0

    def _try(self, path: Path, read: Callable[[Path], Any]) -> Any:
        try:
            return read(path)
        except (OSError, ValueError) as error:
            raise FileMissing(
                f"{self._name}: cannot read {path}: {first_line(error)}",
                hint="texts must be UTF-8"
                if self._of_texts
                else "images must be of a format that Pillow reads",
            ) from error


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _check_text(path: Path) -> None:
    _read_text(path)


def _read_image(path: Path) -> Image:
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")


def _check_image(path: Path) -> None:
    from PIL import Image

    Image.open(path).close()  # reads the header


class _TableRows:
    """Rows of tables, read by `datasets`; their ids are a column's values, or their numbers."""

    def __init__(
        self, paths: Sequence[Path], kind: str, settings: EmbedSection, *, of_texts: bool, name: str
    ) -> None:
        library = _datasets()
        self._table = _load(library, kind, paths, name)
        lines = kind == "text"  # its one column is called so
        self._field = "text" if lines else settings.field or ("text" if of_texts else "image")
        self._id_field = None if lines else settings.id_field
        for field, column in (("field", self._field), ("id_field", self._id_field)):
            if column is not None and column not in self._table.column_names:
                raise BadInput(
                    f"embed.{field}: there is no column {column!r} in {paths[0]}",
                    hint=f"its columns are {', '.join(self._table.column_names)}",
                )
        self._of_texts = of_texts
        self._check_column(paths[0])
        if not of_texts:
            self._table = self._table.cast_column(self._field, library.Image())

    def __len__(self) -> int:
        return len(self._table)

    def read(self, start: int, stop: int) -> list[Any]:
        return self._table[start:stop][self._field]

    def ids(self) -> Iterator[int | str]:
        if self._id_field is None:
            yield from range(len(self._table))
            return
        for batch in self._table.select_columns([self._id_field]).iter(10_000):
            yield from (value if isinstance(value, int) else str(value) for value in batch[self._id_field])

    def longest_bytes(self) -> int:
        if not self._of_texts:
            return 0
        batches = self._table.select_columns([self._field]).iter(10_000)
        return max(len(text.encode()) for batch in batches for text in batch[self._field])

    def _check_column(self, path: Path) -> None:
        import pyarrow

        column = self._table.data.column(self._field)
        is_text = pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)
        if self._of_texts and not is_text:
            raise BadInput(
                f"embed.field: {self._field!r} of {path} holds {column.type}, not text",
                hint="name the column with the text",
            )
        if column.null_count:
            missing = next(row for row, valid in enumerate(column.is_valid()) if not valid.as_py())
            raise BadInput(
                f"embed.field: nothing in {self._field!r} of row {missing} of {path}",
                hint="fill it, or leave the row out",
            )


def _load(library: Any, kind: str, paths: Sequence[Path], name: str) -> Any:
    def load(some: Sequence[Path]) -> Any:
        return library.load_dataset(kind, data_files=[str(path) for path in some], split="train")

    try:
        return load(paths)
    except Exception as error:
        for path in paths:
            try:
                load([path])
            except Exception as found:
                raise FileMissing(
                    f"{name}: cannot read {path} as {kind}: {first_line(found.__cause__ or found)}",
                    hint="each line of JSONL is one JSON object, CSV has a line of column names, text is UTF-8",
                ) from found
        raise BadInput(
            f"{name}: the files have different columns: {first_line(error.__cause__ or error)}",
            hint="make a job of each, or give them the same columns",
        ) from error


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise BadInput(
            "tables are read with datasets, which is not installed here",
            hint='pip install "superpipe_cluster[embed]"',
        ) from error
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    return datasets
