"""Shards, kills and resuming: the bytes are those of one undisturbed run."""

import dataclasses
import fcntl
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megasink.errors import UserError
from megasink.tokenize.options import PreprocessConfig
from megasink.tokenize.preprocess import preprocess
from tests.tokenize.conftest import write_jsonl
from tests.tokenize.test_preprocess import ROOT, SMALL, documents, outputs, whole_run


@settings(max_examples=12, deadline=None)
@given(
    count=st.integers(1, 6),
    unit_bytes=st.integers(300, 3000),
    split=st.sampled_from([None, "6,3,1"]),
    deduplicate=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_any_sharding_merges_to_the_same_bytes(
    tmp_path_factory, sentencepiece_model, count, unit_bytes, split, deduplicate, order
):
    folder = tmp_path_factory.mktemp("sharding")
    write_jsonl(folder / "x.jsonl", [f"Nobody lost {n % 13} lamps. " * (n % 5) for n in range(30)])
    base = PreprocessConfig(
        output_prefix="",
        tokenizer=sentencepiece_model,
        input=(str(folder / "x.jsonl"),),
        workers=1,
        encoder="reference",
        split=split,
        deduplicate=deduplicate,
    )
    expected = whole_run(base, folder / "whole")
    (folder / "sharded").mkdir()
    sharded = dataclasses.replace(base, output_prefix=str(folder / "sharded" / "p"), unit_mib=unit_bytes / 2**20)
    for index in order.sample(range(count), count):
        preprocess(dataclasses.replace(sharded, shard=f"{index}/{count}"))
    preprocess(dataclasses.replace(sharded, merge=True))
    assert outputs(sharded) == expected


def run_killed(config: PreprocessConfig, last: int) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tests/tokenize/killed.py"), str(last), "--tokenizer", config.tokenizer]
    command += ["--input", *config.input, "--output-prefix", config.output_prefix, "--unit-mib", str(config.unit_mib)]
    command += ["--encoder", "reference", "--split", config.split, "--deduplicate", "--workers", "1"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})


def test_kill_minus_9_at_ten_random_points_then_resume(config, tmp_path):
    config = dataclasses.replace(config, split="6,3,1", deduplicate=True, unit_mib=3000 / 2**20)
    expected = whole_run(config, tmp_path / "whole")
    counted = run_killed(dataclasses.replace(config, output_prefix=str(tmp_path / "counted")), 0)
    events = int(counted.stdout)
    resumed_with_work_done = 0
    for number, last in enumerate(sorted(random.Random(5).sample(range(1, events + 1), 10))):
        folder = tmp_path / f"killed{number}"
        folder.mkdir()
        killed = dataclasses.replace(config, output_prefix=str(folder / "p"))
        assert run_killed(killed, last).returncode == -9
        for split in ("train", "valid", "test"):  # nothing half-made opens as good
            if Path(f"{killed.output_prefix}_{split}.idx").exists():
                assert Path(f"{killed.output_prefix}_{split}.bin").read_bytes() == expected[f"p_{split}.bin"]
        summary = preprocess(dataclasses.replace(killed, resume=True))
        resumed_with_work_done += summary.made_bytes < summary.text_bytes
        assert outputs(killed) == expected
    assert resumed_with_work_done >= 5


class TestResume:
    def test_a_finished_run_is_left_alone(self, config):
        first = preprocess(config)
        before = {path: path.stat().st_mtime_ns for path in Path(config.output_prefix).parent.iterdir()}
        again = preprocess(dataclasses.replace(config, resume=True))
        assert before == {path: path.stat().st_mtime_ns for path in Path(config.output_prefix).parent.iterdir()}
        assert (again.documents, again.tokens, again.outputs) == (first.documents, first.tokens, first.outputs)
        merged_again = preprocess(dataclasses.replace(config, merge=True))  # as a job that is started twice does
        assert f"found        {config.output_prefix}.bin" in str(merged_again)

    def test_a_changed_input_is_made_again(self, config, corpus):
        preprocess(config)
        write_jsonl(corpus / "a.jsonl", ["another text"])
        preprocess(dataclasses.replace(config, resume=True))
        assert len(documents(config.output_prefix)) == 54

    @pytest.mark.parametrize("change", [{"append_eod": True}, {"json_key": "n"}, {"split": "1,1,1"}])
    def test_parts_of_other_settings_are_refused(self, config, change):
        preprocess(dataclasses.replace(config, shard="0/2", unit_mib=SMALL))
        with pytest.raises(UserError, match=f"other settings .*{next(iter(change))}"):
            preprocess(dataclasses.replace(config, resume=True, unit_mib=SMALL, **change))

    def test_finished_work_is_not_thrown_away(self, config):
        preprocess(dataclasses.replace(config, shard="0/2", unit_mib=SMALL))
        with pytest.raises(UserError, match="finished units of an earlier run: add --resume"):
            preprocess(dataclasses.replace(config, unit_mib=SMALL))

    def test_merging_too_early_names_what_is_missing(self, config):
        with pytest.raises(UserError, match="run the --shard jobs first"):
            preprocess(dataclasses.replace(config, merge=True))
        preprocess(dataclasses.replace(config, shard="1/2", unit_mib=SMALL))
        with pytest.raises(UserError, match="units are not finished"):
            preprocess(dataclasses.replace(config, merge=True, unit_mib=SMALL))
        assert not Path(f"{config.output_prefix}.idx").exists()

    def test_two_processes_do_not_make_the_same_shard(self, config):
        preprocess(dataclasses.replace(config, shard="1/2", unit_mib=SMALL))
        again = dataclasses.replace(config, shard="0/2", unit_mib=SMALL)
        with open(f"{config.output_prefix}.parts/shard-0-of-2.lock", "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(UserError, match="another process is at work on shard-0-of-2"):
                preprocess(again)
        preprocess(again)  # the lock ends with its holder

    def test_a_damaged_part_is_made_again(self, config, tmp_path):
        expected = whole_run(config, tmp_path / "whole")
        preprocess(dataclasses.replace(config, shard="0/1", unit_mib=SMALL))
        folder = Path(f"{config.output_prefix}.parts")
        for number, path in enumerate(sorted(folder.glob("00*"))):
            if number % 2:
                path.write_bytes(path.read_bytes()[:-1])
        preprocess(dataclasses.replace(config, resume=True, unit_mib=SMALL))
        assert outputs(config) == expected
