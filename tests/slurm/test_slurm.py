"""The batch scripts of examples/ under a real Slurm of two nodes."""

import json
from pathlib import Path

from tests.helpers.jobs import TINY, losses, metrics, train, write_tokens
from tests.slurm.conftest import ROOT

STEPS = 200
FLAGS = [
    *TINY,
    "--head-dim",
    "8",
    "--lr-warmup-iters",
    "0",
    "--eval-interval",
    "0",
    "--train-iters",
    STEPS,
    "--save-interval",
    50,
]
LAYOUT = ["--tensor-model-parallel-size", 2, "--pipeline-model-parallel-size", 2]
SMALL_NODES = ["--gpus-per-node=0", "--ntasks-per-node=2", "--cpus-per-task=1", "--overcommit"]


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_run_over_two_nodes_is_stopped_by_a_signal_requeued_and_ends_as_if_undisturbed(slurm, tmp_path):
    tokens = write_tokens(tmp_path / "tokens")
    run, log = tmp_path / "run", tmp_path / "job.log"
    train_flags = [*FLAGS, "--data-path", tokens, "--save", run, *LAYOUT]
    job = slurm.run("sbatch", "--parsable", f"--output={log}", *SMALL_NODES, "examples/pretrain_1b.sh", *train_flags)
    slurm.wait("the first steps", lambda: lines(run / "metrics.jsonl") > 30, log)
    assert slurm.job(job)["NumNodes"] == "2"
    slurm.run("scancel", "--signal=TERM", job)
    slurm.wait("the requeue", lambda: slurm.job(job)["Restarts"] == "1", log)
    stopped_at = lines(run / "metrics.jsonl")
    assert 30 < stopped_at < STEPS and (run / "checkpoints" / f"step_{stopped_at:08d}").is_dir()
    # a requeued job waits two minutes, or until told; within the second of its requeue its credential is still refused
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now+3seconds")
    slurm.wait("the end", lambda: slurm.job(job)["JobState"] == "COMPLETED", log)
    assert [record["step"] for record in metrics(run)] == list(range(1, STEPS + 1))
    assert len(json.loads((run / "provenance.json").read_text())) == 2

    train(*train_flags[len(TINY) :], "--save", tmp_path / "undisturbed", ranks=4)
    assert losses(run) == losses(tmp_path / "undisturbed")


def test_a_job_array_makes_the_shards_of_one_run(slurm, tmp_path):
    text = tmp_path / "text.jsonl"
    with open(text, "w") as file:
        for number in range(4000):
            file.write(json.dumps({"text": f"Document {number} says {'on and on ' * (number % 40)}."}) + "\n")
    slurm.run(
        "python", ROOT / "tools/train_tokenizer.py", "--input", text, "--output", tmp_path / "tok", "--vocab-size", 300
    )
    flags = ["--input", text, "--tokenizer", tmp_path / "tok.model", "--append-eod", "--unit-mib", 0.05]
    slurm.run("python", ROOT / "tools/preprocess_data.py", *flags, "--output-prefix", tmp_path / "whole")

    log = tmp_path / "array.log"
    slurm.environ |= {
        "SBATCH_OUTPUT": str(log),
        "SBATCH_OPEN_MODE": "append",
    }  # also of the merge, which the array submits
    slurm.run(
        "sbatch",
        "--array=0-2",
        "--cpus-per-task=1",
        "examples/preprocess.sbatch",
        *flags,
        "--output-prefix",
        tmp_path / "array",
    )
    slurm.wait("the merge", lambda: (tmp_path / "array.idx").exists(), log)
    for suffix in (".bin", ".idx"):
        assert (tmp_path / "array").with_suffix(suffix).read_bytes() == (tmp_path / "whole").with_suffix(
            suffix
        ).read_bytes()
