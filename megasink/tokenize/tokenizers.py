"""One face for SentencePiece models and Hugging Face tokenizers. Control tokens spelled out in text stay text."""

import hashlib
import json
import os
from pathlib import Path
from typing import Protocol

import numpy as np

from megasink.errors import UserError

SENTENCEPIECE_NAMES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


class Tokenizer(Protocol):
    """What the writer and the analysis need of a tokenizer.

    Attributes:
        vocab_size: entries; every id is below it.
        bos_id, eos_id: None where the tokenizer has none.
        digest: SHA-256 (hex) of the file that defines it.
        library: what encodes.
        num_calls: calls of encode_batch worth making at once (the libraries have threads of their own).
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    digest: str
    library: str
    num_calls: int

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """int32 [length] ids of each text, without BOS or EOS; `</s>` in a text is text."""
        ...

    def decode(self, ids: list[int] | np.ndarray) -> str: ...


class SentencePieceTokenizer:
    """A SentencePiece model file. `content` and `control_tokens` are for the fast encoder."""

    library = "sentencepiece"
    num_calls = 1

    def __init__(self, path: Path, num_threads: int) -> None:
        import sentencepiece

        self.content = content = _read(path)
        self.digest = hashlib.sha256(content).hexdigest()
        try:
            if not content:  # which the library takes for no model at all
                raise RuntimeError
            self._model = sentencepiece.SentencePieceProcessor(model_proto=content)
        except RuntimeError:
            raise UserError(f"--tokenizer {path}: not a SentencePiece model") from None
        self._num_threads = num_threads
        self.vocab_size = self._model.vocab_size()
        self.bos_id = self._model.bos_id() if self._model.bos_id() >= 0 else None
        self.eos_id = self._model.eos_id() if self._model.eos_id() >= 0 else None
        self.control_tokens = tuple(
            self._model.id_to_piece(token)
            for token in range(self.vocab_size)
            if self._model.is_control(token) or self._model.is_unknown(token)
        )

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        return self._model.encode_as_numpy(texts, num_threads=self._num_threads)

    def decode(self, ids: list[int] | np.ndarray) -> str:
        return self._model.decode([int(token) for token in ids])


class HuggingFaceTokenizer:
    """A `tokenizer.json`; BOS and EOS are named by the `tokenizer_config.json` beside it, or found by usual names."""

    library = "tokenizers"
    num_calls = 2  # its threads rest while ids become arrays

    def __init__(self, path: Path) -> None:
        import tokenizers

        self.content = content = _read(path)
        self.digest = hashlib.sha256(content).hexdigest()
        try:
            self._model = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"--tokenizer {path}: not a Hugging Face tokenizer.json ({error})") from None
        self._model.no_truncation()
        self._model.no_padding()
        self._model.encode_special_tokens = True  # "</s>" in raw text must not become the control token
        self.vocab_size = max(self._model.get_vocab(with_added_tokens=True).values()) + 1
        added = self._model.get_added_tokens_decoder().values()
        self.control_tokens = tuple(token.content for token in added if token.special)
        named = _named_tokens(path.with_name("tokenizer_config.json"))
        self.bos_id = self._find(named.get("bos_token"), ("<s>", "<|begin_of_text|>", "<bos>", "<|endoftext|>"))
        self.eos_id = self._find(named.get("eos_token"), ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>"))

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        encodings = self._model.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: list[int] | np.ndarray) -> str:
        return self._model.decode([int(token) for token in ids], skip_special_tokens=False)

    def _find(self, named: str | None, usual: tuple[str, ...]) -> int | None:
        names = (named,) if named is not None else usual
        return next((found for name in names if (found := self._model.token_to_id(name)) is not None), None)


def load_tokenizer(path: str | Path, num_threads: int = 1) -> Tokenizer:
    """A SentencePiece `.model`, a `tokenizer.json`, or a folder that holds one of them.

    Args:
        path: the file or folder.
        num_threads: threads of encode_batch. `tokenizers` and gigatoken take it from RAYON_NUM_THREADS, once per
            process; a value that is set already stays.

    Raises:
        UserError: no such file, or not a tokenizer.
    """
    path = _find_file(Path(path))
    os.environ.setdefault("RAYON_NUM_THREADS", str(num_threads))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if num_threads > 1 else "false")
    if path.suffix == ".json":
        return HuggingFaceTokenizer(path)
    return SentencePieceTokenizer(path, num_threads)


def _find_file(path: Path) -> Path:
    if not path.exists():
        raise UserError(
            f"--tokenizer {path}: no such file or folder; give a SentencePiece .model, a tokenizer.json or its folder"
        )
    if path.is_file():
        return path
    if not path.is_dir():  # reading a pipe would wait for ever
        raise UserError(f"--tokenizer {path}: not a file (a pipe or device)")
    for name in ("tokenizer.json", *SENTENCEPIECE_NAMES):
        if (path / name).is_file():
            return path / name
    raise UserError(f"--tokenizer {path}: this folder holds neither tokenizer.json nor {SENTENCEPIECE_NAMES[0]}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"--tokenizer {path}: {error.strerror}") from None


def _named_tokens(path: Path) -> dict[str, str]:
    """bos_token and eos_token of a tokenizer_config.json, where it has them (as text or as an AddedToken's dict)."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: unreadable ({error})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: not an object; copy the tokenizer's files again, or remove this one")
    named = {}
    for key in ("bos_token", "eos_token"):
        value = data.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            named[key] = value
    return named
