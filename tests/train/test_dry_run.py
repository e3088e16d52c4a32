"""--dry-run finds what would be wrong in a job, at true size, without ranks, GPUs or data."""

import subprocess
import sys
from pathlib import Path

import pytest

from megasink.config import RunConfig
from megasink.config.cli import from_dict
from megasink.errors import UserError
from megasink.train import main
from megasink.train.dry_run import dry_run
from tests.helpers.jobs import ROOT, TINY

LLAMA_70B = {
    "model": {
        "num_layers": 80,
        "hidden_size": 8192,
        "ffn_hidden_size": 28672,
        "num_attention_heads": 64,
        "num_query_groups": 8,
        "seq_length": 4096,
        "v_scale": "on",
    },
    "parallel": {"tensor_model_parallel_size": 8, "pipeline_model_parallel_size": 8, "sequence_parallel": True},
    "training": {"global_batch_size": 1024},
}
SMALL = {
    "model": {
        "num_layers": 2,
        "hidden_size": 32,
        "ffn_hidden_size": 48,
        "num_attention_heads": 4,
        "vocab_size": 64,
        "seq_length": 16,
    }
}


@pytest.fixture(autouse=True)
def started_by_hand(monkeypatch):
    for name in ("SLURM_NTASKS", "SLURM_JOB_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")


def run_of(sections: dict, save: Path, *data: object, **checkpoint) -> RunConfig:
    more = {"data": {"data_path": list(map(str, data))}, "checkpoint": {"save": str(save)} | checkpoint}
    return from_dict(RunConfig, sections | more, "test")


def test_a_70b_run_on_512_ranks_without_data_passes_and_leaves_nothing_behind(tmp_path, capsys):
    dry_run(run_of(LLAMA_70B, tmp_path / "run", tmp_path / "missing"), 512)
    said = capsys.readouterr().out
    assert "TP 8 x PP 8 x CP 1 x DP 8" in said
    assert "stage 1-6: 10 blocks" in said and "hidden [1, 512, 8192] -> logits [1, 4096, 4000]" in said
    assert "WARNING" in said and "not checked here: data" in said
    assert list(tmp_path.iterdir()) == []


def test_with_data_it_reads_them_and_says_how_many_epochs_a_run_takes(tokens, tmp_path, capsys):
    dry_run(run_of(SMALL, tmp_path / "run", tokens))
    said = capsys.readouterr().out
    assert "8000 to train on" in said and "epochs" in said
    assert "WARNING" not in said and "all is there" in said


def test_documents_kept_apart_do_not_hinder_it(tokens, tmp_path, capsys):
    apart = {"model": SMALL["model"] | {"reset_attention_mask": True, "reset_position_ids": True}}
    dry_run(run_of(apart, tmp_path / "run", tokens))
    assert "logits [1, 16, 128]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "world_size", "says"),
    [
        ({}, 0, "--world-size 0: must be at least 1"),
        ({}, 24, "24 ranks were started, which is no multiple"),
        ({"training": {"global_batch_size": 7}}, 128, "--global-batch-size 7 is not a multiple"),
        ({"checkpoint": {"save": "/dev/null/run"}}, None, "cannot write in /dev/null"),
        ({"data": {"data_path": []}}, None, "--data-path is not given"),
        ({"parallel": {"deepspeed_config": "/nowhere.json"}}, None, "/nowhere.json"),
    ],
)
def test_what_is_wrong_on_any_machine_is_one_line(tmp_path, changes, world_size, says):
    sections = LLAMA_70B | {"data": {"data_path": ["missing"]}, "checkpoint": {"save": str(tmp_path)}} | changes
    with pytest.raises(UserError, match=says):
        dry_run(from_dict(RunConfig, sections, "test"), world_size)


def test_data_of_another_vocabulary_are_refused(tokens, tmp_path):
    small = {"model": SMALL["model"] | {"vocab_size": 2}}
    with pytest.raises(UserError, match="the vocabulary has 2"):
        dry_run(run_of(small, tmp_path / "run", tokens))


def test_damaged_data_are_refused(tokens, tmp_path):
    short = tmp_path / "short"
    short.with_suffix(".idx").write_bytes(tokens.with_suffix(".idx").read_bytes())
    short.with_suffix(".bin").write_bytes(tokens.with_suffix(".bin").read_bytes()[:-2])
    with pytest.raises(UserError, match="short"):
        dry_run(run_of(SMALL, tmp_path / "run", short))


def test_a_run_folder_with_a_run_is_refused_or_resumed(tokens, tmp_path, capsys):
    step = tmp_path / "checkpoints" / "step_00000010"
    step.mkdir(parents=True)
    (step / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="holds a run already"):
        dry_run(run_of(SMALL, tmp_path, tokens))
    dry_run(run_of(SMALL, tmp_path, tokens, auto_resume=True))
    assert "would go on from step_00000010" in capsys.readouterr().out


def test_a_rendezvous_that_does_not_resolve_is_refused(tokens, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setenv("MASTER_ADDR", "no.such.host.invalid")
    with pytest.raises(UserError, match=r"no\.such\.host\.invalid does not resolve"):
        dry_run(run_of(SMALL, tmp_path / "run", tokens))


def test_the_command_line_starts_no_deepspeed(tokens, tmp_path):
    program = (
        "import atexit, sys; atexit.register(lambda: print('deepspeed' in sys.modules)); "
        "from megasink.train import main; main()"
    )
    flags = [*TINY, "--data-path", tokens, "--save", tmp_path / "run", "--dry-run", "--world-size", 4]
    command = [sys.executable, "-c", program, *map(str, flags), "--tensor-model-parallel-size", "2"]
    looked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert looked.returncode == 0 and looked.stdout.splitlines()[-1] == "False", looked.stdout + looked.stderr


def test_a_pretended_world_is_for_dry_runs_only(tokens, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(SystemExit) as refused:
        main([*TINY, "--data-path", str(tokens), "--save", str(tmp_path / "run"), "--world-size", "4"])
    (line,) = capsys.readouterr().err.splitlines()
    assert refused.value.code == 2 and "--dry-run" in line
