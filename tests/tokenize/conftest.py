"""A SentencePiece model and a byte-level tokenizer.json, trained once on a few lines."""

import io
import json
from pathlib import Path

import pytest

from megasink.tokenize.options import PreprocessConfig

LINES = [
    f"{who} {what} the {thing}, and {who.lower()} said: 'don't {what}!' (No. {number})"
    for number, (who, what, thing) in enumerate(
        (who, what, thing)
        for who in ("Alice", "The captain", "Nobody", "Größe", "Москва")
        for what in ("found", "lost", "counted", "sang about")
        for thing in ("harbour", "seven lamps", "déjà vu", "tokenizer")
    )
]


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory) -> str:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("tokenizers") / "sp.model"
    path.write_bytes(model.getvalue())
    return str(path)


@pytest.fixture(scope="session")
def hugging_face_folder(tmp_path_factory) -> str:
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    folder = tmp_path_factory.mktemp("tokenizers") / "hf"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return str(folder)


@pytest.fixture
def corpus(tmp_path) -> Path:
    """60 documents in three JSONL files of different sizes, with two empty ones and two duplicates."""
    texts = [f"{LINES[n % len(LINES)]}\n" * (1 + n * 7 % 11) + f"End of {n}." for n in range(56)]
    texts[9:9] = ["", " \n "]
    texts[30:30] = [texts[3], texts[20]]
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, part in (("a", texts[:5]), ("b", texts[5:50]), ("c", texts[50:])):
        write_jsonl(folder / f"{name}.jsonl", part)
    return folder


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"n": n, "text": text}) + "\n" for n, text in enumerate(texts)))
    return path


@pytest.fixture
def config(corpus, tmp_path, sentencepiece_model) -> PreprocessConfig:
    (tmp_path / "out").mkdir()
    return PreprocessConfig(
        output_prefix=str(tmp_path / "out" / "p"),
        tokenizer=sentencepiece_model,
        input=(str(corpus),),
        workers=1,
        encoder="reference",
    )
