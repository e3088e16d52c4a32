"""A run's tokenizer inside an exported folder, where AutoTokenizer finds it."""

import shutil
from pathlib import Path

from megasink.errors import UserError

_SAMPLES = ("Hello, world", "  two spaces", "na\u00efve caf\u00e9", "1234 + 5", "\u65e5\u672c\u8a9e", "a\nb\tc")
_NAMES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def copy_tokenizer(tokenizer: str | None, folder: Path) -> dict[str, int | None]:
    """Copy a Hugging Face tokenizer folder or file, or wrap a SentencePiece model; returns bos_ and eos_token_id.

    Raises:
        UserError: `tokenizer` names nothing that can be read.
    """
    if tokenizer is None or tokenizer == "none":
        return {"bos_token_id": None, "eos_token_id": None}
    source = Path(tokenizer)
    if source.is_dir():
        for name in _NAMES:
            if (source / name).is_file():
                shutil.copy(source / name, folder / name)
    elif source.suffix == ".json" and source.is_file():
        shutil.copy(source, folder / "tokenizer.json")
    elif source.is_file():
        _wrap_sentencepiece(source, folder)
    else:
        raise UserError(f"--tokenizer {tokenizer}: no such file or folder; name it, or give --tokenizer none")
    return _special_tokens(folder)


def _wrap_sentencepiece(source: Path, folder: Path) -> None:
    """transformers' LlamaTokenizer reads the file but puts no second space before text that begins with one; its
    tokenizer with SentencePiece's own rule instead becomes `tokenizer.json`."""
    from tokenizers import normalizers
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    shutil.copy(source, folder / "tokenizer.model")
    try:
        tokenizer = LlamaTokenizer.from_pretrained(folder, add_bos_token=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"--tokenizer {source}: not a SentencePiece model ({str(error).splitlines()[0]})") from None
    (folder / "tokenizer.model").unlink()
    rules = tokenizer.backend_tokenizer
    rules.pre_tokenizer = None
    rules.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    special_tokens = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token, "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=rules, **special_tokens).save_pretrained(folder)
    _check_equal(source, folder)


def _check_equal(source: Path, folder: Path) -> None:
    """What is made above is BPE without normalisation; not every SentencePiece model is that."""
    import sentencepiece
    from transformers import AutoTokenizer

    try:
        original = sentencepiece.SentencePieceProcessor(model_file=str(source))
        wrapped = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        equal = all(wrapped(text, add_special_tokens=False)["input_ids"] == original.encode(text) for text in _SAMPLES)
    except (OSError, RuntimeError, ValueError):
        equal = False
    if not equal:
        raise UserError(
            f"--tokenizer {source}: transformers' LlamaTokenizer would cut text differently (it knows BPE models "
            "without normalisation only); give a Hugging Face tokenizer, or --tokenizer none"
        )


def _special_tokens(folder: Path) -> dict[str, int | None]:
    from transformers import AutoTokenizer  # seconds to import

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: the tokenizer cannot be read ({str(error).splitlines()[0]})") from None
    return {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
