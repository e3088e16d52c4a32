"""Text to shards: the right tokens, the same bytes however the work was divided or interrupted."""

import dataclasses
import errno
import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from megasink.data.indexed import IndexedDataset
from megasink.data.manifest import read_manifest
from megasink.errors import UserError
from megasink.tokenize.inspection import InspectConfig, inspect
from megasink.tokenize.options import PreprocessConfig
from megasink.tokenize.preprocess import preprocess
from megasink.tokenize.tokenizers import load_tokenizer
from tests.tokenize.conftest import write_jsonl
from tests.tokenize.test_documents import write_as

ROOT = Path(__file__).parents[2]
SMALL = 700 / 2**20  # a unit of 700 bytes


def texts_of(corpus: Path) -> list[str]:
    lines = [line for path in sorted(corpus.iterdir()) for line in path.read_text().splitlines()]
    return [json.loads(line)["text"] for line in lines]


def documents(prefix: str) -> list[list[int]]:
    data = IndexedDataset(prefix)
    return [data[number].tolist() for number in range(len(data))]


def outputs(config: PreprocessConfig) -> dict[str, bytes]:
    """Name -> content of all that lies in the output folder, manifests without the size of a unit."""
    found = {}
    for path in sorted(Path(config.output_prefix).parent.iterdir()):
        found[path.name] = path.read_bytes()
        if path.suffix == ".json":
            manifest = json.loads(found[path.name])
            manifest["settings"].pop("unit_mib")
            found[path.name] = manifest
    return found


def whole_run(config: PreprocessConfig, folder: Path, **changes) -> dict[str, bytes]:
    folder.mkdir(exist_ok=True)
    config = dataclasses.replace(config, output_prefix=str(folder / "p"), **changes)
    preprocess(config)
    return outputs(config)


def test_the_tokens_are_the_tokenizers(config, corpus):
    summary = preprocess(dataclasses.replace(config, prepend_bos=True, append_eod=True))
    kept = [text for text in texts_of(corpus) if text.strip()]
    rows = load_tokenizer(config.tokenizer).encode_batch(kept)
    assert documents(config.output_prefix) == [[1, *row.tolist(), 2] for row in rows]
    assert (summary.documents, summary.empty, summary.bad) == (len(kept), 2, 0)
    assert summary.text_bytes == sum(len(text.encode()) for text in kept)
    assert summary.longest == 2 + max(map(len, rows))


def test_the_manifest_says_what_was_done(config):
    summary = preprocess(dataclasses.replace(config, append_eod=True))
    manifest = read_manifest(config.output_prefix)
    tokenizer = load_tokenizer(config.tokenizer)
    assert (manifest.tokenizer_digest, manifest.vocab_size) == (tokenizer.digest, tokenizer.vocab_size)
    assert (manifest.bos_id, manifest.eos_id, manifest.prepend_bos, manifest.append_eod) == (1, 2, False, True)
    assert (manifest.documents, manifest.tokens) == (summary.documents, summary.tokens)
    assert manifest.corpus["empty"] == 2 and len(manifest.settings["inputs"]) == 3


def test_control_tokens_in_the_corpus_stay_text(config, corpus):
    write_jsonl(corpus / "d.jsonl", ["</s>", "a <s> b</s>c <unk>"])
    for encoder in ("reference", "fastest"):
        preprocess(dataclasses.replace(config, encoder=encoder))
        last = documents(config.output_prefix)[-2:]
        assert not {0, 1, 2} & {token for row in last for token in row}
        assert [load_tokenizer(config.tokenizer).decode(row) for row in last] == ["</s>", "a <s> b</s>c <unk>"]


def test_every_encoder_and_unit_size_gives_the_same_bytes(config, tmp_path):
    expected = whole_run(config, tmp_path / "whole")
    assert sorted(expected) == ["p.bin", "p.idx", "p.json"]
    assert whole_run(config, tmp_path / "cut", unit_mib=SMALL) == expected
    fast = whole_run(config, tmp_path / "fast", encoder="fastest", workers=3)
    assert fast["p.bin"] == expected["p.bin"] and fast["p.idx"] == expected["p.idx"]


def test_a_file_system_without_hard_links(config, tmp_path, monkeypatch):
    """One unit is published by a second name for its files, and by a copy where there is no such thing."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    linked = whole_run(config, tmp_path / "linked")
    monkeypatch.setattr(os, "link", refuse)
    assert whole_run(config, tmp_path / "copied") == linked


def test_the_processes_of_the_fast_encoder_do_all_that_threads_do(config, corpus, tmp_path):
    """Ends, splits, de-duplication, spelled-out control tokens, rows of a table, bad documents: the same files."""
    pytest.importorskip("gigatoken")
    write_jsonl(corpus / "d.jsonl", ["</s> and more", "plain", "a <s> b</s>c <unk>"])
    (corpus / "e.jsonl").write_text('{"text": 5}\n{"text": "fine"}\n')
    write_as(corpus, ".parquet")
    config = dataclasses.replace(
        config, prepend_bos=True, append_eod=True, split="6,3,1", deduplicate=True, skip_bad_documents=True
    )
    expected = whole_run(config, tmp_path / "threads")
    found = whole_run(config, tmp_path / "processes", encoder="fastest", workers=2, unit_mib=SMALL)
    for files in (expected, found):
        for name in ("p_train.json", "p_valid.json", "p_test.json"):
            assert files[name]["corpus"]["bad"] == 1
            assert files[name]["corpus"].pop("library") == files[name]["settings"].pop("encoder")
    assert found == expected


class TestSplit:
    def test_every_document_is_in_one_split_by_its_text(self, config, corpus):
        preprocess(dataclasses.replace(config, split="6,3,1"))
        parts = {split: documents(f"{config.output_prefix}_{split}") for split in ("train", "valid", "test")}
        kept = [text for text in texts_of(corpus) if text.strip()]
        rows = [row.tolist() for row in load_tokenizer(config.tokenizer).encode_batch(kept)]
        assert sorted(itertools.chain(*parts.values())) == sorted(rows)
        assert not any(row in parts["train"] for row in parts["valid"] + parts["test"])  # duplicates stay together
        assert len(parts["train"]) > len(parts["valid"]) > len(parts["test"]) > 0

    def test_it_does_not_depend_on_the_other_documents(self, config, corpus, tmp_path):
        preprocess(dataclasses.replace(config, split="6,3,1"))
        valid = documents(f"{config.output_prefix}_valid")
        (corpus / "a.jsonl").unlink()
        fewer = dataclasses.replace(config, split="6,3,1", output_prefix=str(tmp_path / "fewer"))
        preprocess(fewer)
        assert all(row in valid for row in documents(f"{fewer.output_prefix}_valid"))


def test_only_the_first_of_equal_documents_is_kept(config, corpus):
    summary = preprocess(dataclasses.replace(config, deduplicate=True, unit_mib=SMALL))
    unique = list(dict.fromkeys(text for text in texts_of(corpus) if text.strip()))
    rows = load_tokenizer(config.tokenizer).encode_batch(unique)
    assert documents(config.output_prefix) == [row.tolist() for row in rows]
    assert summary.duplicates == 2


class TestRefusals:
    """One line, nothing at the output."""

    def refused(self, config: PreprocessConfig, words: str) -> None:
        with pytest.raises(UserError, match=words) as caught:
            preprocess(config)
        assert "\n" not in str(caught.value)
        assert list(Path(config.output_prefix).parent.glob("p*")) == []

    def test_no_text(self, config, corpus):
        for path in corpus.iterdir():
            path.write_text('{"text": " "}\n\n')
        self.refused(config, "an empty corpus cannot be trained on")

    def test_empty_files(self, config, corpus):
        for path in corpus.iterdir():
            path.write_text("")
        self.refused(config, "an empty corpus cannot be trained on")

    @pytest.mark.parametrize("encoder", ["reference", "fastest"])
    def test_a_bad_line_late_in_the_corpus(self, config, corpus, encoder):
        config = dataclasses.replace(config, encoder=encoder)
        (corpus / "z.jsonl").write_text('{"text": "fine"}\n{"text": \n')
        self.refused(config, r"z\.jsonl line 2: not JSON")
        assert preprocess(dataclasses.replace(config, skip_bad_documents=True)).bad == 1

    def test_the_first_fault_in_the_corpus_is_named(self, config, corpus):
        """Although the damaged file after it is read before the bad line is parsed."""
        (corpus / "z.jsonl").write_text('{"text": "fine"}\n{"text": \n')
        (corpus / "zz.jsonl.gz").write_bytes(b"damaged")
        self.refused(config, r"z\.jsonl line 2: not JSON")

    @pytest.mark.parametrize("shard", ["", "1", "2/2", "-1/2", "a/b", "0/0"])
    def test_shards(self, config, shard):
        self.refused(dataclasses.replace(config, shard=shard), "give i/n")

    def test_missing_special_tokens(self, config, tmp_path):
        tokenizers = pytest.importorskip("tokenizers")
        path = tmp_path / "tokenizer.json"
        tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "?": 1}, unk_token="?")).save(str(path))
        for flag in ("prepend_bos", "append_eod"):
            self.refused(dataclasses.replace(config, tokenizer=str(path), **{flag: True}), "drop the flag")

    def test_other_flags(self, config):
        self.refused(dataclasses.replace(config, split="1,2"), "three shares")
        self.refused(dataclasses.replace(config, workers=0), "--workers 0")
        self.refused(dataclasses.replace(config, unit_mib=0), "--unit-mib 0")
        self.refused(dataclasses.replace(config, shard="0/2", merge=True), "without --shard")
        self.refused(dataclasses.replace(config, hf_dataset="x"), "not both")

    def test_nothing_of_the_users_is_overwritten(self, config, corpus):
        (corpus / "a.jsonl").rename(corpus / "a.json")
        before = (corpus / "a.json").read_bytes()
        with pytest.raises(UserError, match="in the way"):
            preprocess(dataclasses.replace(config, output_prefix=str(corpus / "a")))
        assert (corpus / "a.json").read_bytes() == before
        (corpus.parent / "mine.parts").mkdir()
        (corpus.parent / "mine.parts" / "thesis.tex").write_text("")
        with pytest.raises(UserError, match="not ours"):
            preprocess(dataclasses.replace(config, output_prefix=str(corpus.parent / "mine")))
        assert (corpus.parent / "mine.parts" / "thesis.tex").exists()


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".arrow", ".txt"])
def test_damaged_corpora_leave_a_whole_pair_or_nothing(config, tmp_path, suffix):
    """Forty of each format, bits flipped, cut off, bytes put in: one line and no file, or files that are whole."""
    rng = random.Random(suffix)
    source = write_as(tmp_path, suffix)
    whole = source.read_bytes()
    config = dataclasses.replace(config, input=(str(source),))
    refused = 0
    for _ in range(40):
        content = bytearray(whole)
        at = rng.randrange(len(content))
        match rng.randrange(3):
            case 0:
                content[at] ^= 1 << rng.randrange(8)
            case 1:
                del content[at:]
            case 2:
                content[at:at] = rng.choice([b"\0", b"\xff\xfe", b"{", b'"}\n{"text": 5}\n', b"\xed\xa0\x80"])
        source.write_bytes(content)
        try:
            preprocess(config)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and str(source) in str(error)
            assert list(Path(config.output_prefix).parent.iterdir()) == []
        else:
            assert inspect(InspectConfig(config.output_prefix, samples=0))
            for written in (".bin", ".idx", ".json"):
                Path(f"{config.output_prefix}{written}").unlink()
    assert refused >= 5


def command(*arguments: str, before: str = "pass") -> subprocess.CompletedProcess:
    """Run the tool as users do, after `before` (Python)."""
    code = f"import sys, runpy\n{before}\nrunpy.run_path('tools/preprocess_data.py', run_name='__main__')"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})


def flags(config: PreprocessConfig) -> list[str]:
    return ["--input", *config.input, "--tokenizer", config.tokenizer, "--output-prefix", config.output_prefix]


def test_a_full_disk_is_one_line_and_leaves_nothing(config, corpus):
    write_jsonl(corpus / "large.jsonl", [f"{n} Nobody counted the seven lamps. " * 50 for n in range(1000)])
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000,) * 2)"
    result = command(*flags(config), before=limit)
    assert result.returncode == 2
    assert result.stderr.startswith("megasink: cannot write") and result.stderr.count("\n") == 1
    assert list(Path(config.output_prefix).parent.iterdir()) == []


def test_the_command_line(config):
    names = "sorted({'torch', 'deepspeed'} & set(sys.modules))"
    done = command(*flags(config), before=f"import atexit; atexit.register(lambda: print({names}))")
    assert done.returncode == 0 and done.stderr == ""
    assert "left out     2 empty" in done.stdout and "bytes/token" in done.stdout
    assert done.stdout.endswith("[]\n")  # neither torch nor deepspeed was imported
    folder = Path(config.input[0])
    hub = ["--hf-dataset", str(folder), "--tokenizer", config.tokenizer, "--output-prefix", f"{config.output_prefix}2"]
    done = command(*hub, before=f"import atexit; atexit.register(lambda: print({names}))")
    assert done.returncode == 0 and done.stdout.endswith("[]\n")  # nor by the datasets library
    bad = command(*flags(config), "--no-such-flag")
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1 and "--no-such-flag" in bad.stderr


def test_datasets_of_the_hugging_face_library(config, tmp_path):
    """A folder in the library's own formats, streamed through it, and one that it saved."""
    datasets = pytest.importorskip("datasets")
    texts = [f"The captain lost lamp {number}." for number in range(9)]
    expected = [row.tolist() for row in load_tokenizer(config.tokenizer).encode_batch(texts)]
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(str(tmp_path / "saved"), num_shards=3)
    preprocess(dataclasses.replace(config, input=(str(tmp_path / "saved"),)))
    assert documents(config.output_prefix) == expected
    (tmp_path / "hub").mkdir()
    for number in range(3):
        write_jsonl(tmp_path / "hub" / f"train-{number}.jsonl", texts[3 * number : 3 * number + 3])
    preprocess(dataclasses.replace(config, input=(), hf_dataset=str(tmp_path / "hub")))
    assert documents(config.output_prefix) == expected
    sharded = dataclasses.replace(
        config, input=(), hf_dataset=str(tmp_path / "hub"), output_prefix=f"{tmp_path}/sharded"
    )
    for change in ({"shard": "1/2"}, {"shard": "0/2"}, {"merge": True}):
        preprocess(dataclasses.replace(sharded, **change))
    assert documents(sharded.output_prefix) == expected
    with pytest.raises(UserError, match="read it with --input"):
        preprocess(dataclasses.replace(config, input=(), hf_dataset=str(tmp_path / "saved")))
    with pytest.raises(UserError, match='no column "body"'):
        preprocess(dataclasses.replace(config, input=(), hf_dataset=str(tmp_path / "hub"), json_key="body"))
    with pytest.raises(UserError, match="cannot be opened"):
        preprocess(dataclasses.replace(config, input=(), hf_dataset=str(tmp_path / "nothing-here")))
