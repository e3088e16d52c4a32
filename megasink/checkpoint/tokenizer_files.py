"""A run's tokenizer inside an exported folder, where AutoTokenizer finds it."""

import json
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
    shutil.copy(source, folder / "tokenizer.model")
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    _check_equal(source, folder)


def _check_equal(source: Path, folder: Path) -> None:
    """transformers reads SentencePiece files as BPE without normalisation; not every model is that."""
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
