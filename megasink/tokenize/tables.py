"""Rows of Parquet and Arrow files (pyarrow), and of datasets on a Hugging Face hub (datasets)."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from megasink.errors import UserError
from megasink.tokenize.sources import SourceFile

_ROWS = 512  # converted to Python at once


def read_rows(source: SourceFile, column: str) -> Iterator[tuple[object, int]]:
    """(value of `column`, share of the file's bytes) of every row, with bounded memory."""
    import pyarrow

    batches = _parquet_batches if source.format == "parquet" else _arrow_batches
    try:
        total, stream = batches(source.path, column)
        per_row = source.size / max(total, 1)
        done = reported = 0
        for batch in stream:
            for start in range(0, batch.num_rows, _ROWS):
                for value in batch.column(0).slice(start, _ROWS).to_pylist():
                    done += 1
                    yield value, round(done * per_row) - reported
                    reported = round(done * per_row)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{source.path}: damaged or not a {source.format} file ({reason})") from None


def _parquet_batches(path: str, column: str) -> tuple[int, Iterator]:
    from pyarrow import parquet

    file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
    _check_column(path, file.schema_arrow, column)
    return file.metadata.num_rows, file.iter_batches(_ROWS, columns=[column], use_threads=False)


def _arrow_batches(path: str, column: str) -> tuple[int, Iterator]:
    """Both of Arrow's layouts: the stream that `datasets` saves and the file (Feather)."""
    import pyarrow

    # the maps are for counting rows; what is read of a map stays in memory, so rows come from the file itself
    if pyarrow.memory_map(path).read(6) == b"ARROW1":
        mapped, opened = (pyarrow.ipc.open_file(kind(path)) for kind in (pyarrow.memory_map, pyarrow.OSFile))
        total = sum(mapped.get_batch(at).num_rows for at in range(mapped.num_record_batches))
        batches = (opened.get_batch(at) for at in range(opened.num_record_batches))
    else:
        total = sum(batch.num_rows for batch in pyarrow.ipc.open_stream(pyarrow.memory_map(path)))
        batches = opened = pyarrow.ipc.open_stream(pyarrow.OSFile(path))
    if total:
        _check_column(path, opened.schema, column)
    return total, (batch.select([column]) for batch in batches)


def _check_column(path: str, schema: object, column: str) -> None:
    import pyarrow

    if column not in schema.names:
        known = ", ".join(schema.names[:10])
        raise UserError(f'{path}: no column "{column}" (it has: {known}); name the text\'s column with --json-key')
    kind = schema.field(column).type
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise UserError(
            f'{path}: the column "{column}" holds {kind}, not text; name the text\'s column with --json-key'
        )


def open_hub_dataset(name: str, config: str | None, split: str) -> object:
    """A streaming `datasets` dataset, from a hub or a local folder."""
    given = os.environ.get("USE_TORCH")
    os.environ["USE_TORCH"] = given or "0"  # else datasets imports it: seconds and memory for nothing
    try:
        import datasets
    except ImportError:
        raise UserError("--hf-dataset needs the package datasets: pip install datasets") from None
    finally:
        if given is None:
            del os.environ["USE_TORCH"]
    if (Path(name) / "state.json").exists():
        raise UserError(f"--hf-dataset {name}: a folder written by save_to_disk; read it with --input {name}")
    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a line for each of many tries
    try:
        return datasets.load_dataset(name, config, split=split, streaming=True)
    except Exception as error:  # the library and its HTTP stack raise dozens of kinds
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise UserError(
            f"--hf-dataset {name}: cannot be opened ({reason[0]}); check the name and the network"
        ) from None


def read_hub(dataset: object, shard: int, column: str) -> Iterator[tuple[object, int]]:
    """(value of `column`, 0) of every row in one of the dataset's own shards."""
    try:
        for row in dataset.shard(dataset.num_shards, shard, contiguous=True):
            if column not in row:
                known = ", ".join(list(row)[:10])
                raise UserError(f'--hf-dataset: no column "{column}" (it has: {known}); name it with --json-key')
            yield row[column], 0
    except UserError:
        raise
    except Exception as error:  # as above
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"--hf-dataset: reading stopped ({reason}); try again with --resume") from None
