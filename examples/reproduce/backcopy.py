"""Tokens of the Bigram-Backcopy task (arXiv 2410.13835), where attention sinks form within minutes on a CPU.

Token 0 is BOS and begins every sequence; tokens 1 to `triggers` are triggers; the others are ordinary. After an
ordinary token (and BOS) the next one is drawn from a fixed table of bigrams; after a trigger the token *before* the
trigger comes again. A head that looks back has something to do after triggers only, and rests on BOS everywhere else.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import ConfigDict

from megasink.data import IndexedDatasetWriter, read_manifest
from megasink.data.manifest import SCHEMA, Manifest, write_manifest
from megasink.errors import UserError

BOS = 0
_CHUNK = 4096  # sequences drawn at once; part of the definition, since the draws follow it


@dataclass(frozen=True)
class Backcopy:
    """A recipe's key `backcopy`. The paper took its bigrams from characters of a play; here `seed` draws them."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    train_sequences: int
    valid_sequences: int
    triggers: int = 3
    """How many tokens of the vocabulary are triggers."""
    trigger_share: float = 0.1
    """Probability of a trigger after an ordinary token, for all triggers together."""
    concentration: float = 8.0
    """Of the Dirichlet distributions of successors: the smaller, the fewer successors a token has."""
    seed: int = 0
    """Of the table and of the sequences."""


def bigram_table(task: Backcopy, vocab_size: int) -> np.ndarray:
    """float64 [V, V]: probability of each token (column) after BOS or an ordinary token (row); triggers' rows are 0.

    Ordinary successors of a row are a Dirichlet draw around frequencies that fall as 1 / rank; BOS and triggers share
    `task.trigger_share` evenly among the triggers, but none follows BOS, which has nothing before it to repeat.

    Raises:
        UserError: shares that are none, a vocabulary without two ordinary tokens.
    """
    ordinary = vocab_size - 1 - task.triggers
    if not (0 <= task.trigger_share < 1 and task.triggers >= 1 and task.concentration > 0 and ordinary >= 2):
        raise UserError(
            f"backcopy: {task.triggers} triggers with a share of {task.trigger_share} and a concentration of "
            f"{task.concentration} in a vocabulary of {vocab_size}: it takes a share below 1, a concentration above 0, "
            "one trigger and two ordinary tokens"
        )
    frequencies = 1 / np.arange(1, ordinary + 1)
    frequencies *= task.concentration / frequencies.sum()
    successors = np.random.default_rng([task.seed, 0]).dirichlet(frequencies, size=1 + ordinary)
    table = np.zeros((vocab_size, vocab_size))
    first = 1 + task.triggers
    table[BOS, first:] = successors[0]
    table[first:, first:] = successors[1:] * (1 - task.trigger_share)
    table[first:, 1:first] = task.trigger_share / task.triggers
    return table


def draw_sequences(task: Backcopy, table: np.ndarray, count: int, seq_length: int, part: int) -> np.ndarray:
    """int64 [count, seq_length] sequences, BOS first; `part` (1: training, 2: validation) varies the draws."""
    rng = np.random.default_rng([task.seed, part])
    ends = table.cumsum(axis=1)
    ends[:, -1] = np.inf  # rounding must not leave a gap above the last token
    sequences = np.full((count, seq_length), BOS)
    for first in range(0, count, _CHUNK):
        chunk = sequences[first : first + _CHUNK]
        for place in range(1, seq_length):
            last = chunk[:, place - 1]
            drawn = (rng.random((len(chunk), 1)) >= ends[last]).sum(axis=1)
            is_trigger = (last >= 1) & (last <= task.triggers)
            chunk[:, place] = np.where(is_trigger, chunk[:, place - 2], drawn)
    return sequences


def write_backcopy(folder: Path, task: Backcopy, vocab_size: int, seq_length: int) -> dict:
    """Make `folder`/tokens_train.* and tokens_valid.*, or find them made; returns the training part's manifest.

    A document is one sequence of `seq_length` tokens, as long as what training reads at a time: every sample is one
    sequence, and its last label the BOS of the next.

    Raises:
        UserError: other tokens are there, or see `bigram_table`.
    """
    table = bigram_table(task, vocab_size)
    settings = {"task": asdict(task), "vocab_size": vocab_size, "seq_length": seq_length}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    counts = task.train_sequences, task.valid_sequences
    for part, (name, count) in enumerate(zip(("tokens_train", "tokens_valid"), counts, strict=True), start=1):
        made = read_manifest(folder / name)
        if made is not None and made.tokenizer_digest != digest:
            raise UserError(f"{folder} was made with other settings; choose another --out")
        if made is None:
            sequences = draw_sequences(task, table, count, seq_length, part)
            with IndexedDatasetWriter(folder / name, vocab_size) as writer:
                writer.add_documents(sequences.ravel(), np.full(count, seq_length))
            write_manifest(folder / name, _manifest(digest, settings, vocab_size, sequences))
    return asdict(read_manifest(folder / "tokens_train"))


def _manifest(digest: str, settings: dict, vocab_size: int, sequences: np.ndarray) -> Manifest:
    return Manifest(
        schema=SCHEMA,
        tokenizer="Bigram-Backcopy task",
        tokenizer_digest=digest,
        vocab_size=vocab_size,
        bos_id=BOS,
        eos_id=None,
        prepend_bos=True,
        append_eod=False,
        documents=len(sequences),
        tokens=sequences.size,
        settings=settings,
    )
