"""The data as a run meets it: what it refuses in one line, and what it goes on with after a checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest

from megasink.data.build import build_dataset
from megasink.data.indexed import IndexedDataset, idx_path
from megasink.data.manifest import Manifest, write_manifest
from tests.helpers.jobs import TINY, Job, losses, train, write_tokens

VOCABULARY = 64


def with_manifest(prefix: Path, tokenizer_digest: str = "a", bos_id: int | None = 1) -> Path:
    data = IndexedDataset(prefix)
    write_manifest(
        prefix,
        Manifest(
            schema="megasink.tokens/1",
            tokenizer=f"{tokenizer_digest}.model",
            tokenizer_digest=tokenizer_digest,
            vocab_size=VOCABULARY,
            bos_id=bos_id,
            eos_id=None,
            prepend_bos=False,
            append_eod=False,
            documents=len(data),
            tokens=data.num_tokens,
        ),
    )
    return prefix


def shards(folder: Path, *names: str, documents: int = 60) -> list[Path]:
    """Each of another number of documents: equal ones would be taken for one data set that was moved."""
    return [with_manifest(write_tokens(folder / name, documents + at)) for at, name in enumerate(names)]


def refusal(*flags: object, ranks: int = 1) -> str:
    outcome = train(*flags, expect=2, ranks=ranks)
    (line,) = outcome.output.splitlines()
    assert line.startswith("megasink: ")
    return line


def flip_a_bit(path: Path, byte: int) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 4
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda prefix: flip_a_bit(idx_path(prefix), 50), "p.idx: damaged"),
        (lambda prefix: flip_a_bit(idx_path(prefix), 0), "not a Megatron index"),
        (lambda prefix: cut_short(Path(f"{prefix}.bin")), "truncated or not its pair"),
        (lambda prefix: cut_short(Path(f"{prefix}.json")), "damaged manifest"),
        (lambda prefix: write_tokens(prefix, 61), "not their manifest"),
        (lambda prefix: with_manifest(write_tokens(prefix.with_name("q")), "b"), "made with different tokenizers"),
    ],
    ids=["idx", "magic", "bin", "manifest", "other-manifest", "other-tokenizer"],
)
def test_damaged_or_mismatching_shards_are_refused(tmp_path, damage, says):
    (prefix,) = shards(tmp_path, "p")
    damage(prefix)
    paths = [str(found.with_suffix("")) for found in sorted(tmp_path.glob("*.bin"))]
    assert says in refusal("--data-path", *paths, "--save", tmp_path / "run", "--train-iters", 1)


def test_another_vocabulary_or_tokenizer_is_refused(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    (prefix,) = shards(tmp_path, "p")
    other = tmp_path / "tokenizer.json"
    words = {f"w{number}": number for number in range(VOCABULARY)}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0")).save(str(other))
    flags = ["--data-path", prefix, "--save", tmp_path / "run", "--train-iters", 1]
    assert "--vocab-size 128: the tokenizer has 64 entries" in refusal(*flags, "--vocab-size", 128)
    assert f"--tokenizer {other} did not make {prefix}" in refusal(*flags, "--tokenizer", other)


def test_an_id_outside_the_vocabulary_ends_the_run_where_it_is_read(tmp_path):
    """Such damage shows only when a sample is read; the rank that reads it says so, in the one line that is said."""
    (prefix,) = shards(tmp_path, "p")
    dataset = build_dataset((str(prefix),), "969,30,1", "train", 16, 1234)
    place = dataset.datasets[0]._pieces(7)[0].start  # sample 7 is the second rank's, of the second batch
    tokens = np.fromfile(f"{prefix}.bin", "<u2")
    tokens[place + 3] = 64
    tokens.tofile(f"{prefix}.bin")
    flags = ["--data-path", prefix, "--save", tmp_path / "run", "--train-iters", 3, "--seed", 1234]
    outcome = Job(*TINY, *flags, ranks=2).wait()
    assert outcome.codes[1] == 2 and outcome.codes[0] not in (0, None)
    assert outcome.output.count(f"{prefix}.bin: sample 7 has token id 64, the vocabulary has 64 entries") == 1
    assert "Traceback" not in outcome.output
    written = tmp_path / "run" / "metrics.jsonl"  # a step's line comes when the next is on its way
    assert not written.exists() or len(losses(tmp_path / "run")) <= 1


def test_bos_first_is_the_first_token_of_what_is_trained_and_evaluated(tmp_path):
    (prefix,) = shards(tmp_path, "p")
    flags = ["--data-path", prefix, "--train-iters", 1, "--eval-interval", 1, "--eval-iters", 1, "--split", "80,20,0"]
    train(*flags, "--save", tmp_path / "plain")
    train(*flags, "--save", tmp_path / "bos", "--bos-first")
    assert losses(tmp_path / "plain") != losses(tmp_path / "bos")
    with_manifest(prefix, bos_id=None)
    assert "--bos-first: the tokenizer of the shards has no BOS" in refusal(
        *flags, "--save", tmp_path / "none", "--bos-first"
    )


class TestResume:
    """Seed, batch of 4, three steps: twelve samples before the checkpoint."""

    def run(self, folder: Path, steps: int, *flags: object, **more) -> dict:
        train("--save", folder, "--train-iters", steps, "--auto-resume", *flags, **more)
        return json.loads((folder / "checkpoints" / f"step_{steps:08d}" / "state.json").read_text())["data"]

    def test_other_weights_and_a_new_dataset_go_on_without_repeating(self, tmp_path):
        a, b, c = shards(tmp_path, "a", "b", "c")
        first = self.run(tmp_path / "run", 3, "--data-path", 0.5, a, 0.5, b)
        assert [entry["given"] for entry in first["blend"]] == [6, 6]
        second = self.run(tmp_path / "run", 5, "--data-path", 0.25, a, 0.75, c)
        assert (second["start"], second["consumed_samples"]) == (12, 20)
        assert [(entry["base"], entry["given"]) for entry in second["blend"]] == [(6, 8), (0, 6)]
        assert [(entry["prefix"], entry["given"]) for entry in second["retired"]] == [(str(b), 6)]

    def test_another_batch_and_more_ranks_read_on_in_the_same_order(self, tmp_path):
        (a,) = shards(tmp_path, "a")
        self.run(tmp_path / "run", 3, "--data-path", a)
        state = self.run(
            tmp_path / "run", 4, "--data-path", a, "--global-batch-size", 8, "--data-cache-path", tmp_path / "cache",
            ranks=2,
        )  # fmt: skip
        assert (state["start"], state["consumed_samples"], state["blend"][0]["given"]) == (0, 20, 20)
        assert len(list((tmp_path / "cache").iterdir())) == 2

    def test_what_would_change_the_order_is_refused(self, tmp_path):
        (a,) = shards(tmp_path, "a")
        flags = ["--data-path", a, "--save", tmp_path / "run"]
        train(*flags, "--train-iters", 1)
        again = [*flags, "--train-iters", 2, "--auto-resume"]
        assert "resume with --seq-length 16" in refusal(*again, "--seq-length", 32)
        assert "resume with --seed 1234" in refusal(*again, "--seed", 7)
        Path(f"{a}.json").unlink()
        shards(tmp_path, "a", documents=61)
        assert "not the documents that the checkpoint's run was reading" in refusal(*again)
