"""From `--data-path` and `--split` to a dataset."""

import math
import os
from pathlib import Path
from typing import Literal

from megasink.data.blend import BlendedDataset, ChainedDataset
from megasink.data.dataset import SampleSource, TokenDataset
from megasink.data.indexed import IndexedDataset
from megasink.errors import UserError

SPLITS = ("train", "valid", "test")


def build_dataset(
    data_path: tuple[str, ...],
    split: str | None,
    which: Literal["train", "valid", "test"],
    seq_length: int,
    seed: int,
    *,
    first_token: int | None = None,
    cache_dir: str | Path | None = None,
) -> SampleSource:
    """The dataset of one split; for "train" a BlendedDataset, of one dataset too.

    Args:
        data_path: one prefix, several prefixes (mixed in proportion to their tokens), or weights and prefixes in turn.
        split: relative shares of documents for train, valid and test, "969,30,1"; None: all documents are `which`'s.
        which: "train" shuffles and never ends; "valid" and "test" are one ordered pass that never wraps.
        seq_length: T.
        seed: of the shuffles.
        first_token: id put at position 0 of every sample (see TokenDataset).
        cache_dir: folder for the training order of large corpora, shared or local to a node; default: memory.

    Raises:
        UserError: bad weights or shares, damaged files, a split with too few tokens.
    """
    weights, prefixes = parse_data_path(data_path)
    datasets = []
    for prefix in prefixes:
        indexed = IndexedDataset(prefix)
        documents = None if split is None else _documents(indexed, split, which)
        datasets.append(TokenDataset(indexed, seq_length, seed, documents, which == "train", first_token, cache_dir))
    if which != "train":
        return datasets[0] if len(datasets) == 1 else ChainedDataset(datasets)
    weights = weights or [dataset.samples_per_epoch for dataset in datasets]
    return BlendedDataset(datasets, weights)


def parse_data_path(data_path: tuple[str, ...]) -> tuple[list[float] | None, list[str]]:
    """(weights or None, prefixes) of `--data-path`: prefixes alone, or weights and prefixes in turn.

    The name of one of the two files counts as their prefix.

    Raises:
        UserError: no prefix, one named twice, a weight that is missing or not positive.
    """
    if not data_path:
        raise UserError("--data-path is empty; make shards with tools/preprocess_data.py and give their prefix")
    numbers = [_as_number(word) for word in data_path]
    if numbers[0] is None or len(data_path) == 1:
        weights, prefixes = None, list(data_path)
    elif len(data_path) % 2 or any((number is None) == (at % 2 == 0) for at, number in enumerate(numbers)):
        raise UserError(
            f"--data-path {' '.join(data_path)}: give prefixes, or weights and prefixes in turn: 0.7 a 0.3 b"
        )
    else:
        weights, prefixes = numbers[0::2], list(data_path[1::2])
        if not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise UserError(f"--data-path {' '.join(data_path)}: every weight must be a positive number")
    prefixes = [prefix.removesuffix(".idx").removesuffix(".bin") for prefix in prefixes]
    if len({os.path.realpath(prefix) for prefix in prefixes}) < len(prefixes):
        raise UserError(f"--data-path {' '.join(data_path)}: a prefix is named twice; add its weights up instead")
    return weights, prefixes


def parse_split(split: str) -> tuple[float, float, float]:
    """Shares of train, valid and test, summing to 1. Raises UserError where `split` is not three shares."""
    try:
        shares = [float(part) for part in split.split(",")]
    except ValueError:
        shares = []
    if len(shares) != 3 or not all(math.isfinite(share) and share >= 0 for share in shares) or sum(shares) == 0:
        raise UserError(f"--split {split}: give three shares of documents, for example 969,30,1")
    return tuple(share / sum(shares) for share in shares)


def _documents(indexed: IndexedDataset, split: str, which: str) -> tuple[int, int]:
    """Half-open document range of a split: consecutive ranges, so that a document is in one split only."""
    shares = parse_split(split)
    count = len(indexed)
    at = SPLITS.index(which)
    start, stop = round(sum(shares[:at]) * count), round(sum(shares[: at + 1]) * count)
    if stop <= start:
        raise UserError(f"{indexed.prefix}: --split {split} leaves no document of {count} for {which}; raise its share")
    return start, stop


def _as_number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
