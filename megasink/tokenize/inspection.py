"""What is in a `.bin/.idx` pair, and whether it is whole."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from megasink.config.ranges import check_ranges
from megasink.data.indexed import IndexedDataset
from megasink.data.manifest import Manifest
from megasink.errors import UserError
from megasink.tokenize.tokenizers import Tokenizer, load_tokenizer

_CHUNK = 8 << 20  # tokens looked at once


@dataclass
class InspectConfig:
    """Show what is in a .bin/.idx pair and check it; exit code 0 if it is whole."""

    prefix: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PREFIX")]
    """The pair's path without .bin or .idx."""
    tokenizer: str | None = None
    """Tokenizer to decode samples with; default: the one that the manifest names, if it is still there."""
    vocab_size: int | None = None
    """Every token id must be below this; default: the manifest's."""
    samples: int = 3
    """Documents to show the beginning of, spread over the file."""
    sample_tokens: int = 60
    """Tokens to show of each document."""


def inspect(config: InspectConfig) -> list[str]:
    """Lines of a report.

    Raises:
        UserError: the first fault: damaged files, ids outside the vocabulary, a manifest or tokenizer of other files.
    """
    check_ranges(config)
    if config.samples < 0 or config.sample_tokens < 0:
        raise UserError("--samples and --sample-tokens: must not be negative")
    data = IndexedDataset(config.prefix)
    prefix, manifest = data.prefix, data.manifest
    tokenizer = _tokenizer(config, prefix, manifest)
    vocab_size = config.vocab_size or (manifest.vocab_size if manifest else tokenizer.vocab_size if tokenizer else None)
    used = _count_ids(prefix, data, vocab_size)
    lengths = np.diff(data.document_starts)
    lines = [
        f"{prefix}: {len(data)} documents, {data.num_tokens} tokens, {data.dtype.name}, "
        f"{data.num_tokens * data.dtype.itemsize / 1e6:.1f} MB",
        f"document length in tokens: {_spread(lengths)}",
    ]
    if manifest is not None:
        lines += _about(manifest)
    lines.append(_about_ids(used, vocab_size))
    if manifest is not None:
        lines += _edges(data, lengths, manifest)
    for document in np.unique(np.linspace(0, len(data) - 1, max(config.samples, 0)).astype(int)) if len(data) else []:
        tokens = data[document][: config.sample_tokens]
        text = repr(tokenizer.decode(tokens)) if tokenizer is not None else " ".join(map(str, tokens.tolist()))
        lines.append(f"document {document} ({lengths[document]} tokens): {text}")
    return lines


def _tokenizer(config: InspectConfig, prefix: str, manifest: Manifest | None) -> Tokenizer | None:
    path = config.tokenizer or (manifest.tokenizer if manifest is not None else None)
    if path is None or (config.tokenizer is None and not Path(path).exists()):
        return None
    tokenizer = load_tokenizer(path)
    if manifest is not None and tokenizer.digest != manifest.tokenizer_digest:
        raise UserError(f"--tokenizer {path} is not the one that made {prefix} (its file has changed or is another)")
    return tokenizer


def _count_ids(prefix: str, data: IndexedDataset, vocab_size: int | None) -> np.ndarray:
    """int64 [largest id + 1] occurrences of each id."""
    counts = np.zeros(0, np.int64)
    for first in range(0, data.num_tokens, _CHUNK):
        tokens = data.tokens[first : first + _CHUNK]
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or (vocab_size is not None and high >= vocab_size):
            at = first + int(np.argmax((tokens < 0) | (tokens >= (vocab_size or high + 1))))
            raise UserError(
                f"{prefix}.bin: token {at} has id {data.tokens[at]}, outside the vocabulary of {vocab_size or 'any'} "
                "entries: damaged, or made with another tokenizer"
            )
        found = np.bincount(tokens, minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    return counts


def _about(manifest: Manifest) -> list[str]:
    made = manifest.corpus
    lines = [
        f"tokenizer: {manifest.tokenizer}, {manifest.vocab_size} entries, SHA-256 {manifest.tokenizer_digest[:16]}"
    ]
    if made:
        left_out = ", ".join(f"{made.get(key, 0)} {key}" for key in ("empty", "bad", "duplicates"))
        lines.append(
            f"made by {made.get('library')} from {made.get('documents')} documents, {made.get('text_bytes')} bytes of "
            f"text; left out: {left_out}"
        )
    return lines


def _about_ids(used: np.ndarray, vocab_size: int | None) -> str:
    if len(used) == 0:
        return "ids: none"
    of = f" of {vocab_size}" if vocab_size is not None else ""
    return f"ids: {np.flatnonzero(used)[0]} to {len(used) - 1}, {np.count_nonzero(used)}{of} used"


def _edges(data: IndexedDataset, lengths: np.ndarray, manifest: Manifest) -> list[str]:
    """Whether documents begin and end as the manifest says."""
    lines, filled = [], lengths > 0
    ends = (
        ("prepend_bos", "begin with BOS", manifest.bos_id, data.document_starts[:-1][filled]),
        ("append_eod", "end with EOS", manifest.eos_id, data.document_starts[1:][filled] - 1),
    )
    for flag, words, token, positions in ends:
        if getattr(manifest, flag):
            matching = int(np.count_nonzero(data.tokens[positions] == token))
            if matching != len(positions):
                raise UserError(
                    f"{data.prefix}: made with {flag}, but {len(positions) - matching} of {len(positions)} documents "
                    f"do not {words} ({token}): damaged; remake it with tools/preprocess_data.py"
                )
            lines.append(f"all documents {words} ({token})")
    return lines


def _spread(lengths: np.ndarray) -> str:
    if len(lengths) == 0:
        return "no documents"
    low, middle, high = np.percentile(lengths, [0, 50, 100]).astype(int)
    empty = int(np.count_nonzero(lengths == 0))
    return f"smallest {low}, median {middle}, mean {lengths.mean():.1f}, largest {high}; {empty} empty"
