"""The tokens that all models are measured on."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megasink.config import RunConfig
from megasink.data import build_dataset, read_manifest
from megasink.data.build import parse_data_path
from megasink.errors import UserError
from megasink.tokenize.documents import Reader, Segment
from megasink.tokenize.sources import find_sources
from megasink.tokenize.tokenizers import load_tokenizer


@dataclass(frozen=True)
class TokenSequences:
    """S sequences of T tokens with the token that follows each."""

    samples: np.ndarray
    """int64 [S, T + 1]."""
    description: str
    """Where they came from, in words."""
    bos: bool = False
    """Whether BOS was put before each sequence."""

    @property
    def seq_length(self) -> int:
        return self.samples.shape[1] - 1

    @property
    def num_tokens(self) -> int:
        """Input tokens, S T."""
        return self.samples[:, 1:].size

    @property
    def title(self) -> str:
        return f"Sequences of {self.seq_length:,} tokens{', BOS first' if self.bos else ''}"

    @property
    def digest(self) -> str:
        """The first 16 hex digits of the tokens' SHA-256: equal tokens, equal digest."""
        return hashlib.sha256(np.ascontiguousarray(self.samples, "<i8").tobytes()).hexdigest()[:16]


def read_tokens(
    data: str, tokenizer: str | None, config: RunConfig, seq_length: int, num_tokens: int, bos: bool = False
) -> TokenSequences:
    """About `num_tokens` tokens as whole sequences, spread evenly over the text; all of it if there is less.

    Args:
        data: the prefix of a `.bin/.idx` pair, or a text file (`.jsonl`, `.txt`, ...). Of shards that the run trained
            on only the validation part of its `--split` is read.
        tokenizer: for text; default: the one the run's configuration names.
        config: the first model's run.
        seq_length: T.
        num_tokens: wanted in all.
        bos: put the tokenizer's BOS before each sequence of T - 1 tokens of text.

    Raises:
        UserError: no such data, no tokenizer, no BOS, too little text for one sequence.
    """
    if num_tokens < seq_length:
        raise UserError(f"--tokens {num_tokens} is less than one sequence of --seq-length {seq_length}; raise --tokens")
    from_text = seq_length - bos  # tokens of text in a sequence
    count = num_tokens // seq_length
    if data.endswith((".bin", ".idx")) and Path(data).is_file():
        data = data[:-4]
    if Path(f"{data}.idx").is_file():
        samples, description = _from_shards(data, config, from_text, count)
    elif Path(data).is_file():
        samples, description = _from_text(data, tokenizer or config.data.tokenizer, from_text, count)
    else:
        raise UserError(f"--data {data}: neither a text file nor the prefix of a .bin/.idx pair")
    if bos:
        first = np.full((len(samples), 1), _bos_id(data, tokenizer or config.data.tokenizer))
        samples = np.concatenate([first, samples], axis=1)
    return TokenSequences(samples, description, bos)


def check_vocabulary(sequences: TokenSequences, vocab_size: int, label: str, data: str) -> None:
    """Raises UserError if the data has a token that the model has no embedding for."""
    largest = int(sequences.samples.max())
    if largest >= vocab_size:
        raise UserError(
            f"{label}: its vocabulary has {vocab_size} entries, but --data {data} holds token {largest}; use data made "
            "with this model's tokenizer"
        )


def _from_shards(prefix: str, config: RunConfig, length: int, wanted: int) -> tuple[np.ndarray, str]:
    """int64 [S, length + 1] and where they came from."""
    split = config.data.split if _was_trained_on(prefix, config) else None
    dataset = build_dataset((prefix,), split, "valid", length, seed=0)
    chosen = _spread(dataset.num_samples, wanted)
    samples = np.stack([dataset.sample(int(index)) for index in chosen])
    part = f"the validation part (split {split}) of shards" if split is not None else "shards"
    return samples, f"{part} {prefix}, {len(chosen):,} of {dataset.num_samples:,} sequences"


def _was_trained_on(prefix: str, config: RunConfig) -> bool:
    if not config.data.data_path or config.data.valid_data_path:
        return False
    _, prefixes = parse_data_path(config.data.data_path)
    return Path(prefix).resolve() in {Path(trained).resolve() for trained in prefixes}


def _from_text(path: str, tokenizer: str | None, length: int, wanted: int) -> tuple[np.ndarray, str]:
    """int64 [S, length + 1] and where they came from."""
    if tokenizer is None:
        raise UserError(f"--data {path} is text, and the checkpoint names no tokenizer; give one with --tokenizer")
    encoder = load_tokenizer(tokenizer)
    rows = []
    (source,) = find_sources((path,))
    for text, _ in Reader().documents(Segment(source)):
        rows += encoder.encode_batch([text])
        if encoder.eos_id is not None:
            rows.append(np.array([encoder.eos_id]))
    stream = np.concatenate(rows or [np.zeros(0)]).astype(np.int64)
    available = max(len(stream) - 1, 0) // length
    if available == 0:
        raise UserError(
            f"--data {path}: {len(stream)} tokens, too few for one sequence of --seq-length {length}; use more text or "
            "shorter sequences"
        )
    starts = _spread(available, wanted) * length
    samples = stream[starts[:, None] + np.arange(length + 1)]
    return samples, f"text {path}, {len(samples):,} of {available:,} sequences, tokenizer {tokenizer}"


def _bos_id(data: str, tokenizer: str | None) -> int:
    manifest = read_manifest(data) if Path(f"{data}.idx").is_file() else None
    if manifest is not None and manifest.bos_id is not None:
        return manifest.bos_id
    bos_id = load_tokenizer(tokenizer).bos_id if tokenizer is not None else None
    if bos_id is None:
        raise UserError("--bos: no BOS is known for this data; give a tokenizer that has one, or --bos off")
    return bos_id


def _spread(available: int, wanted: int) -> np.ndarray:
    """int64 numbers of at most `wanted` sequences, evenly spaced over those available."""
    count = min(available, wanted)
    return np.arange(count, dtype=np.int64) * available // count
