"""Rows of local files: JSON lines and Parquet by `datasets`, which reads them in place, CSV and plain text.

Owns reading, with errors that name the file. What a row means is `examples`'.
"""

from __future__ import annotations

import csv
import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from superpipe_cluster.errors import BadInput, FileMissing, first_line

#: The builder of `datasets` by a file's extension; all else is text.
_BUILDERS = {
    ".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv",
}  # fmt: skip
_PACKED = {".gz", ".bz2", ".xz", ".zst"}
_FORMATS = {"jsonl": "json", "parquet": "parquet", "csv": "csv"}


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        where: its file and number, for messages.
        columns: what is in it.
    """

    where: str
    columns: dict[str, Any]


def read_rows(paths: Sequence[Path], file_format: str) -> Iterator[Row]:
    """The rows of the files, in their order.

    A text file is one row with the column `text`. Where the format goes by the extension, texts that are no UTF-8 are
    left out: a glob over a source tree meets a few.

    Raises:
        FileMissing: a file cannot be read.
        BadInput: a file is not what it should be.
    """
    for path in paths:
        builder = _FORMATS.get(file_format) or (_builder_of(path) if file_format == "auto" else None)
        rows = _text(path, strict=file_format == "text") if builder is None else _table(path, builder)
        for number, columns in enumerate(rows, start=1):
            yield Row(f"{path}, row {number}" if builder else str(path), columns)


def _builder_of(path: Path) -> str | None:
    plain = path.with_suffix("") if path.suffix in _PACKED else path
    return _BUILDERS.get(plain.suffix)


def _table(path: Path, builder: str) -> Iterator[dict[str, Any]]:
    try:
        if (
            builder == "csv"
        ):  # by the standard library: all that is in it is text, 007 no number and NA no gap
            separator = "\t" if path.suffix == ".tsv" else ","
            with path.open(encoding="utf-8", newline="") as file:
                yield from csv.DictReader(file, delimiter=separator, strict=True)
        else:
            # Escaped: a file whose name merely looks like a glob is meant as it is.
            files = [glob.escape(str(path))]
            yield from _datasets().load_dataset(builder, data_files=files, split="train", streaming=True)
    except StopIteration:  # what datasets says of an empty JSON file
        return
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's errors are ValueErrors
        said = FileMissing if isinstance(error, OSError) else BadInput
        raise said(
            f"data.files: cannot read {path} as {builder}: {first_line(error)}",
            hint="JSON files have one object a line, CSV files are UTF-8; or say what they are in data.format",
        ) from error


def _text(path: Path, *, strict: bool) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        if strict:
            raise BadInput(f"data.files: {path} is not UTF-8", hint="convert it, or leave it out") from error
        return
    except OSError as error:
        raise FileMissing(
            f"data.files: cannot read {path}: {first_line(error)}", hint="check its permissions"
        ) from error
    if text.strip():
        yield {"text": text}


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise BadInput(
            "reading tables of examples needs datasets, which is not installed here",
            hint='pip install "superpipe_cluster[lm]"',
        ) from error
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)  # what goes wrong is said by us
    datasets.disable_progress_bars()
    return datasets
