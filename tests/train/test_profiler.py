"""--profile writes a trace and a table of some steps and leaves the training as it is."""

import gzip
import json

from tests.helpers.jobs import losses, train


def test_a_profiled_run_trains_the_same_and_says_where_time_went(tokens, tmp_path):
    flags = ["--data-path", tokens, "--train-iters", 9, "--tensor-model-parallel-size", 2]
    plain, profiled = tmp_path / "plain", tmp_path / "profiled"
    train(*flags, "--save", plain, ranks=2)
    outcome = train(*flags, "--save", profiled, "--profile", 2, "--memory-snapshot", ranks=2)
    assert losses(profiled) == losses(plain)
    assert len(outcome.lines("megasink: --memory-snapshot needs a GPU")) == 1
    assert len(outcome.lines("megasink: 2 steps profiled on rank 0")) == 1
    found = profiled / "profile" / "after_step_00000007"
    with gzip.open(f"{found}.trace.json.gz") as trace:
        assert json.load(trace)["traceEvents"]
    summary = json.loads(found.with_suffix(".json").read_text())
    assert summary["categories"].keys() >= {"matmul", "attention", "norm", "optimizer", "communication"}
    assert all(sums["ms"] > 0 for sums in summary["categories"].values())
    assert summary["step_ms"] > 0 and summary["data_wait_ms"] > 0
    assert found.with_suffix(".txt").read_text().strip() in outcome.output


def test_a_run_too_short_to_profile_says_so(tokens, tmp_path):
    outcome = train("--data-path", tokens, "--save", tmp_path / "run", "--train-iters", 3, "--profile", 2)
    (line,) = outcome.lines("megasink: no profile")
    assert "9 steps" in line
