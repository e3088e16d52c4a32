"""The vocabulary a run trains on: from the shards' manifests, checked against --vocab-size and --tokenizer."""

from megasink.config import RunConfig
from megasink.data.build import parse_data_path
from megasink.data.indexed import idx_path
from megasink.data.manifest import Manifest, read_manifest
from megasink.errors import UserError
from megasink.tokenize.tokenizers import load_tokenizer


def resolve_vocab_size(config: RunConfig) -> int:
    """The model's vocabulary size.

    Raises:
        UserError: shards of different tokenizers, or a --vocab-size or --tokenizer that is not theirs.
    """
    data, given = config.data, config.model.vocab_size
    if not data.data_path:
        raise _no_data("is not given", "data/pretrain")
    prefixes = [
        prefix for path in (data.data_path, data.valid_data_path) if path for prefix in parse_data_path(path)[1]
    ]
    for prefix in prefixes:
        if not idx_path(prefix).exists():
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
