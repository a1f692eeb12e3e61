"""Make one vector of each text or image, streamed within the job's budget: files in, Parquet or NumPy out.

One flat program: read it from `main` down. Vectors are written to their places in one file as they are made, and a
checkpoint says how many batches are in it: a job that is started again goes on behind them, with the bits it would have
had.

The last bits of a vector depend on who else is in its batch, so that follows from the data and `batch_size`, whatever
the budget. With `auto` each row has the vector that it has alone, however many go together.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from superpipe_cluster.embedding import Alone, Encoder, Rows, open_rows
from superpipe_cluster.errors import BadInput
from superpipe_cluster.outputs import require_writable
from superpipe_cluster.planning import Probe
from superpipe_cluster.spec import ByteRange, EmbedJob, EmbedSection

if TYPE_CHECKING:
    from superpipe_cluster.execution.job import Job

#: Rows of a batch where `batch_size` is `auto`.
MOST = 64
#: Texts are sorted by length among so many batches, so that little of a batch is filling.
_SORTED_TOGETHER = 64
#: Rows in a row group of a Parquet file.
_GROUP_ROWS = 16_384


def main(job: Job) -> None:
    """Set up, find where to go on, embed batch by batch, write the result."""
    asked = job.spec
    assert isinstance(asked, EmbedJob)  # the job file was checked: its sections are there
    assert asked.model is not None
    assert asked.embed is not None
    settings = asked.embed
    rows = open_rows(settings)
    encoder = Encoder(asked.model, settings)
    done = batches_done(job.latest_checkpoint(), job.output)
    raw = job.output / "embeddings.npy"
    batches = -(-len(rows) // size_of(settings))
    if done < batches:
        require_writable(raw.parent, raw.name)
    with job.stream(encoder.model, weights=encoder.files) as streamer:
        stats = streamer.stats()
        job.log(
            f"{len(rows)} rows in {batches} batches; {stats.units} units, {stats.k} on the device at once"
        )
        if done:
            job.log(f"resumed behind batch {done}, attempt {job.attempt}")
        alone = Alone(encoder, streamer.device) if settings.batch_size == "auto" else None
        saved, out = done, None
        for number, (places, batch) in enumerate(batches_from(done, rows, encoder, settings), start=done):
            if job.should_stop:
                break
            if alone is None:
                given = {name: value.to(streamer.device) for name, value in encoder.batch(batch).items()}
                vectors = encoder.encode(given)
            else:
                vectors = alone.vectors(batch, streamer, for_passes(job), lambda: job.should_stop)
            if vectors is None:  # it is to stop, in the middle of a batch
                break
            if out is None:
                out = VectorFile(raw, (len(rows), vectors.shape[1]), fresh=number == 0)
            out.write(places, vectors.cpu().numpy())
            done = number + 1
            job.progress(step=done, steps=batches)
            if done - saved >= settings.checkpoint_every or done == batches:
                out.flush()  # what a checkpoint speaks of is on disk before it
                job.save(done, lambda folder, done=done: save_done(folder, done))
                saved = done
        if out is not None:
            out.flush()
            if done > saved:
                job.save(done, lambda folder: save_done(folder, done))
            out.close()
    if done == batches:
        finish(job.output, rows, settings)
        job.log(f"{len(rows)} embeddings written to {job.output}")


def probe(job: EmbedJob) -> Probe:
    """One batch of the largest shape there can be, for the plan made before it runs; with `auto`, one row."""
    assert job.model is not None
    assert job.embed is not None
    settings = job.embed
    encoder = Encoder(job.model, settings, weights=False)
    rows = open_rows(settings)
    # With `auto` a pass has as many rows of a batch as a budget has room for: one, at least.
    together = 1 if settings.batch_size == "auto" else settings.batch_size
    batch = encoder.widest(together, rows.longest_bytes())
    return Probe(
        encoder.model, lambda: encoder.encode(batch), steps=together / min(size_of(settings), len(rows))
    )


# ---- batches ------------------------------------------------------------------------------------------


def size_of(settings: EmbedSection) -> int:
    """Rows of a batch."""
    return MOST if settings.batch_size == "auto" else settings.batch_size


def batches_from(
    first: int, rows: Rows, encoder: Encoder, settings: EmbedSection
) -> Iterator[tuple[list[int], list[Any]]]:
    """Batch `first` and all later ones: the places of its rows, and these as images or tokens, the longest first.

    Which rows are together follows from their order and `batch_size` alone.
    """
    size = size_of(settings)
    if settings.images is not None:
        for start in range(first * size, len(rows), size):
            images = rows.read(start, min(start + size, len(rows)))
            yield list(range(start, start + len(images))), images
        return
    group_rows = size * _SORTED_TOGETHER
    for start in range(first // _SORTED_TOGETHER * group_rows, len(rows), group_rows):
        tokens = encoder.tokenize(rows.read(start, min(start + group_rows, len(rows))))
        order = sorted(range(len(tokens)), key=lambda row: -len(tokens[row]["input_ids"]))
        for at in range(max(0, first * size - start), len(order), size):
            chosen = order[at : at + size]
            yield [start + row for row in chosen], [tokens[row] for row in chosen]


def for_passes(job: Job) -> int:
    """Bytes in which a pass must fit: those that are guaranteed; of an unknown guarantee, half of what there is now."""
    asked = job.spec.resources.gpu_memory
    return min(job.budget_bytes, asked.min_bytes) if isinstance(asked, ByteRange) else job.budget_bytes // 2


# ---- output -------------------------------------------------------------------------------------------


class VectorFile:
    """A `.npy` file of `float32[rows, dimensions]` whose rows are written in any order.

    Args:
        path: the file.
        shape: rows and dimensions.
        fresh: begin anew, whatever is there.

    Raises:
        BadInput: the disk has no room for it, or what is there is another one's.
    """

    def __init__(self, path: Path, shape: tuple[int, int], *, fresh: bool) -> None:
        self._row_bytes = shape[1] * 4
        header = npy_header(shape)
        self._start = len(header)
        if fresh:
            self._file: BinaryIO = path.open("w+b")
            self._file.write(header)
            self._file.flush()
            needed = self._start + shape[0] * self._row_bytes
            try:
                os.posix_fallocate(self._file.fileno(), 0, needed)
            except OSError as error:
                raise BadInput(
                    f"output: no room for {needed / 2**30:.1f} GiB of vectors in {path.parent}: {error.strerror}",
                    hint="name another folder in `output`, or make room",
                ) from error
        else:
            self._file = path.open("r+b")
            if self._file.read(self._start) != header:
                raise BadInput(
                    f"output: {path} holds vectors of another shape than the job's, {shape[0]} times {shape[1]}",
                    hint="the model or the data has changed: give the job another name and submit it anew",
                )

    def write(self, places: list[int], vectors: np.ndarray[Any, Any]) -> None:
        """Write each vector to its place."""
        for place, vector in zip(places, np.ascontiguousarray(vectors, dtype="<f4"), strict=True):
            self._file.seek(self._start + place * self._row_bytes)
            self._file.write(vector.tobytes())

    def flush(self) -> None:
        """Return when all that was written is on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def npy_header(shape: tuple[int, int]) -> bytes:
    """What stands before the numbers in a `.npy` file."""
    from io import BytesIO

    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return header.getvalue()


def save_done(folder: Path, batches: int) -> None:
    """A checkpoint: how many batches are in the file."""
    (folder / "done.json").write_text(json.dumps({"batches": batches}))


def batches_done(checkpoint: Path | None, output: Path) -> int:
    """How many batches earlier attempts have made; 0 as well when their vectors are gone."""
    if checkpoint is None or not any((output / f"embeddings.{one}").exists() for one in ("npy", "parquet")):
        return 0
    path = checkpoint / "done.json"
    try:
        return int(json.loads(path.read_text())["batches"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"the checkpoint {path} cannot be read: {error}", hint=f"remove {checkpoint} and resubmit the job"
        ) from error


def finish(folder: Path, rows: Rows, settings: EmbedSection) -> None:
    """The result in the format that was asked for. Killed at any point, it is done again with the same bytes."""
    raw = folder / "embeddings.npy"
    if settings.format == "npy":
        with whole(folder / "ids.jsonl") as path, path.open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in rows.ids())
    elif raw.exists():  # otherwise an earlier attempt was done but for saying so
        with whole(folder / "embeddings.parquet") as path:
            write_parquet(path, np.load(raw, mmap_mode="r"), list(rows.ids()))
        raw.unlink()


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write that takes the place of `path` when it is whole."""
    unfinished = path.with_name(path.name + ".unfinished")
    yield unfinished
    unfinished.replace(path)


def write_parquet(path: Path, vectors: np.ndarray[Any, Any], ids: list[int | str]) -> None:
    """`id` and `embedding`, a list of fixed length."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    of_numbers = all(isinstance(one, int) for one in ids)
    kind = pa.int64() if of_numbers else pa.string()
    schema = pa.schema({"id": kind, "embedding": pa.list_(pa.float32(), vectors.shape[1])})
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(ids), _GROUP_ROWS):
            some = ids[start : start + _GROUP_ROWS]
            flat = pa.array(np.ascontiguousarray(vectors[start : start + len(some)]).reshape(-1))
            columns = [
                pa.array(some if of_numbers else list(map(str, some)), kind),
                pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
