"""Speed of the sample stream: random reads from a warm cache, and the order of 1e8 documents.

python benchmarks/data_loading.py --folder /tmp/loading   (4 GB there with --documents 100000000; removed at the end)
"""

import resource
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megasink.config.cli import parse_cli
from megasink.data.build import build_dataset
from megasink.data.dataset import TokenDataset
from megasink.data.indexed import DTYPE_CODES, HEADER, MAGIC, IndexedDatasetWriter
from megasink.errors import run_cli


@dataclass
class LoadingConfig:
    """Time reading samples and building the order of a very large corpus."""

    folder: str
    """Scratch folder, removed at the end."""
    documents: int = 100_000_000
    """Documents (and samples) of the large index; its .bin is a sparse file. 0: skip it."""
    seq_length: int = 2048
    """Tokens per sample."""
    reads: int = 50_000
    """Samples read per timing."""


def main() -> None:
    config = parse_cli(LoadingConfig, sys.argv[1:])
    folder = Path(config.folder)
    folder.mkdir()
    try:
        read_samples(folder / "small", config)
        if config.documents:
            open_large(folder / "large", config)
    finally:
        shutil.rmtree(folder)


def read_samples(prefix: Path, config: LoadingConfig) -> None:
    """50 M tokens of u16 in documents of 1 to 3,500 tokens; samples in their shuffled order."""
    lengths = np.random.default_rng(0).integers(1, 3500, 28_000)
    with IndexedDatasetWriter(prefix, 32_000) as writer:
        writer.add_documents(np.random.default_rng(1).integers(0, 32_000, lengths.sum()), lengths)
    blend = build_dataset((str(prefix),), None, "train", config.seq_length, 1)
    tokens = blend.datasets[0].indexed.tokens
    starts = np.random.default_rng(2).integers(0, len(tokens) - config.seq_length, config.reads).tolist()

    def bare(number: int) -> None:
        tokens[starts[number] : starts[number] + config.seq_length + 1].astype(np.int64)

    for name, read in (("one slice to int64 (the floor)", bare), ("dataset.sample(i)", blend.sample)):
        for number in range(config.reads):  # warm
            read(number)
        wall, cpu = time.perf_counter(), time.process_time()
        for number in range(config.reads):
            read(number)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(f"{name}: {config.reads / wall:,.0f} samples/s, {config.reads / cpu:,.0f} per CPU second", flush=True)


def open_large(prefix: Path, config: LoadingConfig) -> None:
    """Documents of about seq_length tokens, so as many samples as documents."""
    write_large(prefix, config)
    wall, cpu = time.perf_counter(), time.process_time()
    dataset = TokenDataset(prefix, config.seq_length, seed=1, cache_dir=prefix.parent / "cache")
    opened = time.perf_counter() - wall, time.process_time() - cpu
    dataset.sample(0)
    built = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{len(dataset.indexed):,} documents, {dataset.samples_per_epoch:,} samples: opened and checked in "
        f"{opened[0]:.1f} s ({opened[1]:.1f} CPU s), first sample after {built[0]:.1f} s ({built[1]:.1f} CPU s), "
        f"peak {peak:.2f} GiB"
    )
    wall = time.perf_counter()
    TokenDataset(prefix, config.seq_length, seed=1, cache_dir=prefix.parent / "cache").sample(12345)
    print(f"the next process, from the cache: {time.perf_counter() - wall:.1f} s")


def write_large(prefix: Path, config: LoadingConfig) -> None:
    rng, count, step = np.random.default_rng(3), config.documents, 1 << 20
    parts = [slice(first, min(first + step, count)) for first in range(0, count, step)]
    lengths = np.empty(count, "<i4")
    for part in parts:
        lengths[part] = rng.integers(config.seq_length - 1000, config.seq_length + 1001, part.stop - part.start)
    with open(f"{prefix}.idx", "wb") as file:
        code = next(code for code, dtype in DTYPE_CODES.items() if dtype == np.uint16)
        file.write(HEADER.pack(MAGIC, 1, code, count, count + 1))
        lengths.tofile(file)
        total = 0
        for part in parts:
            ends = total + np.cumsum(lengths[part], dtype=np.int64)
            (2 * (ends - lengths[part])).tofile(file)
            total = int(ends[-1])
        for part in parts:
            np.arange(part.start, part.stop, dtype="<i8").tofile(file)
        np.array([count], "<i8").tofile(file)
    with open(f"{prefix}.bin", "wb") as file:
        file.truncate(2 * total)


if __name__ == "__main__":
    run_cli(main)
