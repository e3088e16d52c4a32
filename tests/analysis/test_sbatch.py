"""examples/analyze.sbatch gives every complete checkpoint of a run to the command."""

import os
import subprocess
from pathlib import Path

JOB = Path(__file__).parents[2] / "examples" / "analyze.sbatch"


def submit(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """Run the job's script where a `python` that says what it was called with comes first."""
    (folder / "tools").mkdir(exist_ok=True)
    (folder / "tools" / "analyze_ckpt.py").touch()
    python = folder / "bin" / "python"
    python.parent.mkdir(exist_ok=True)
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    environ = os.environ | {"SLURM_SUBMIT_DIR": str(folder), "PATH": f"{python.parent}:{os.environ['PATH']}"}
    return subprocess.run(["bash", JOB, *words], env=environ, capture_output=True, text=True)


def test_complete_checkpoints_but_the_untrained_one(tmp_path):
    for step, complete in ((0, True), (20, True), (40, True), (60, False)):
        checkpoint = tmp_path / "my run" / "checkpoints" / f"step_{step:08d}"
        checkpoint.mkdir(parents=True)
        if complete:
            (checkpoint / "state.json").touch()
    result = submit(tmp_path, "my run", "--quant")
    steps = " ".join(f"my run/checkpoints/step_{step:08d}" for step in (20, 40))
    assert result.stdout == f"tools/analyze_ckpt.py {steps} --tokens 128k --out my run/report --quant\n", result.stderr


def test_one_line_without_a_run_or_a_checkpoint(tmp_path):
    for words, line in (([], "name a run folder"), (["nowhere"], "no complete checkpoint")):
        result = submit(tmp_path, *words)
        assert result.returncode == 2 and result.stderr.count("\n") == 1 and line in result.stderr
