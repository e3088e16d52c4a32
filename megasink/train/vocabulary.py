"""The vocabulary a run trains on: from the shards' manifests, checked against --vocab-size and --tokenizer."""

from dataclasses import replace
from pathlib import Path

from megasink.config import RunConfig
from megasink.data.build import parse_data_path
from megasink.data.indexed import bin_path, idx_path
from megasink.data.manifest import Manifest, read_manifest
from megasink.errors import UserError
from megasink.tokenize.tokenizers import load_tokenizer

ASSUMED_VOCAB_SIZE = 32000
"""For a plan or a dry run without data, Llama 2's: close enough for memory and time."""


def resolve_vocab_size(config: RunConfig) -> int:
    """The model's vocabulary size.

    Raises:
        UserError: shards of different tokenizers, or a --vocab-size or --tokenizer that is not theirs.
    """
    data, given = config.data, config.model.vocab_size
    prefixes = _prefixes(config)
    for prefix in prefixes:
        if not idx_path(prefix).exists():
            if Path(prefix).is_dir():
                inside = min(Path(prefix).glob("*.idx"), default=Path(prefix) / "NAME").with_suffix("")
                raise UserError(f"--data-path {prefix}: a folder; give the prefix of token files in it, as {inside}")
            raise _no_data(f"{prefix}: no {idx_path(prefix)}", prefix)
    manifests = {prefix: manifest for prefix in prefixes if (manifest := read_manifest(prefix)) is not None}
    _check_one_tokenizer(manifests)
    known = next(iter(manifests.values())).vocab_size if manifests else None
    source = f"{next(iter(manifests))}.json" if manifests else None
    if data.tokenizer is not None:
        tokenizer = load_tokenizer(data.tokenizer)
        for prefix, manifest in manifests.items():
            if manifest.tokenizer_digest != tokenizer.digest:
                raise UserError(
                    f"--tokenizer {data.tokenizer} did not make {prefix} (that was {manifest.tokenizer}); give that one"
                )
        known, source = tokenizer.vocab_size, data.tokenizer
    if known is None and given is None:
        raise UserError(
            f"--vocab-size: {prefixes[0]} has no manifest to take it from; give --vocab-size or --tokenizer"
        )
    if known is not None and given is not None and given != known:
        raise UserError(
            f"--vocab-size {given}: the tokenizer has {known} entries ({source}); leave the flag out, padding is added "
            "by itself"
        )
    return given or known


def vocab_size_at_hand(config: RunConfig) -> tuple[int, str]:
    """`resolve_vocab_size` where the shards are there, and where its size comes from.

    Where they are not: --vocab-size, the tokenizer's, or else ASSUMED_VOCAB_SIZE. A tokenizer that is not there is not
    looked at.
    """
    tokenizer = config.data.tokenizer
    if config.data.data_path and not missing_shards(config):
        at_hand = tokenizer if tokenizer is None or Path(tokenizer).exists() else None
        size = resolve_vocab_size(replace(config, data=replace(config.data, tokenizer=at_hand)))
        return size, "agrees with the data" if at_hand is None else "data and tokenizer agree"
    if config.model.vocab_size is not None:
        return config.model.vocab_size, "--vocab-size"
    if tokenizer is not None and Path(tokenizer).exists():
        return load_tokenizer(tokenizer).vocab_size, f"--tokenizer {tokenizer}"
    return ASSUMED_VOCAB_SIZE, "assumed; --vocab-size or --tokenizer says otherwise"


def missing_shards(config: RunConfig) -> list[str]:
    """Files of --data-path and --valid-data-path that are not there. Raises UserError where none are named."""
    files = [file for prefix in _prefixes(config) for file in (idx_path(prefix), bin_path(prefix))]
    return [str(file) for file in files if not file.exists()]


def _prefixes(config: RunConfig) -> list[str]:
    """Of all shards of --data-path and --valid-data-path. Raises UserError where none are named."""
    data = config.data
    if not data.data_path:
        raise _no_data("is not given", "data/pretrain")
    return [prefix for path in (data.data_path, data.valid_data_path) if path for prefix in parse_data_path(path)[1]]


def _no_data(fault: str, prefix: str) -> UserError:
    return UserError(
        f"--data-path {fault}; make it: python tools/preprocess_data.py --input corpus.jsonl --output-prefix {prefix} "
        "--tokenizer TOKENIZER --prepend-bos --append-eod"
    )


def _check_one_tokenizer(manifests: dict[str, Manifest]) -> None:
    digests = {manifest.tokenizer_digest: prefix for prefix, manifest in manifests.items()}
    if len(digests) > 1:
        first, second, *_ = digests.values()
        raise UserError(f"--data-path: {first} and {second} were made with different tokenizers; remake one of them")
