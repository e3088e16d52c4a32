"""A SentencePiece tokenizer trained on the same inputs that are tokenized later."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megasink.data.atomic import temporary_path, write_atomic
from megasink.errors import UserError
from megasink.tokenize.documents import Reader, Segment
from megasink.tokenize.sources import SourceFile, find_sources


@dataclass
class TrainTokenizerConfig:
    """Train a SentencePiece tokenizer with BOS, EOS and byte fallback (no text is unknown to it)."""

    input: tuple[str, ...]
    """JSONL or text files, as for preprocess_data.py."""
    output: str
    """Prefix: writes <prefix>.model; the suffix may be there already."""
    vocab_size: int
    """Vocabulary entries, special tokens and 256 bytes included."""
    json_key: str = "text"
    """Key of the text in each JSON object."""
    model_type: Literal["bpe", "unigram"] = "bpe"
    """SentencePiece algorithm."""
    max_sentences: int = 1_000_000
    """Lines of text used at most, taken at random."""
    num_threads: int = 2
    """Threads that train."""


def train_tokenizer(config: TrainTokenizerConfig) -> Path:
    """Train and write `<output>.model` atomically; unk 0, bos 1, eos 2, digits split, whitespace kept.

    Raises:
        UserError: bad inputs, a vocabulary too small or too large for the text, an unwritable output.
    """
    import sentencepiece

    sources = find_sources(config.input)
    if config.vocab_size < 300:
        raise UserError(f"--vocab-size {config.vocab_size}: at least 300 (256 bytes and special tokens are fixed)")
    if not config.output or config.output.endswith("/"):
        raise UserError(f"--output {config.output}: end it with a name, for example data/tokenizer")
    path = Path(f"{config.output.removesuffix('.model')}.model")
    probe = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()  # training takes long: one that is ended meanwhile leaves nothing
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another --output") from None
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(config, sources),
            model_writer=model,
            vocab_size=config.vocab_size,
            model_type=config.model_type,
            input_sentence_size=config.max_sentences,
            shuffle_input_sentence=True,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            num_threads=config.num_threads,
            minloglevel=2,
        )
        write_atomic(path, model.getvalue())
    except RuntimeError as error:
        raise UserError(f"SentencePiece refused: {error}; try a smaller --vocab-size or more text") from None
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another --output") from None
    return path


def _lines(config: TrainTokenizerConfig, sources: list[SourceFile]) -> Iterator[str]:
    """Lines of all documents, without their newline (SentencePiece trains on lines)."""
    found = False
    reader = Reader(config.json_key)
    for text in (text for source in sources for text, _ in reader.documents(Segment(source))):
        for line in text.splitlines():
            if line.strip():
                found = True
                yield line
    if not found:
        raise UserError(f"no text in {' '.join(config.input)}: nothing to train a tokenizer on")
