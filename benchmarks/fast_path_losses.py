"""Do the fast paths train like the plain ones? The same run in several ways, loss by loss, side by side.

    python benchmarks/fast_path_losses.py --out OUT -- --config examples/pretrain_0.1b.yaml --data-path DATA ...
    python benchmarks/fast_path_losses.py --compare fp8 --out OUT -- --config examples/pretrain_0.1b.yaml ...

Everything after `--` goes to the training command of all runs. `compiled`: compiled and with --no-compile in bf16, both
against --no-compile in fp32. Two ways to round drift apart in training, and how far is a question of the recipe; what
the plain run drifts from fp32 is its noise, and compiled may not drift much further. `fp8`: --fp8 hybrid against bf16.
Prints the differences, writes OUT/fast_path_losses.json; exit code 1 outside the bound.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from megasink.config.cli import parse_cli
from megasink.data.atomic import write_atomic
from megasink.errors import UserError, run_cli

RUNS = {  # by name, flags of their own; the last of each comparison is what the others are measured by
    "compiled": {"compiled": (), "plain": ("--no-compile",), "fp32": ("--no-compile", "--precision", "fp32")},
    "fp8": {"fp8": ("--fp8", "hybrid"), "bf16": ("--fp8", "off")},
}
FP8_MEAN = 0.02
"""Nats, of fp8's mean absolute difference from bf16."""
NOISES, FLOOR = 1.5, 0.002
"""Compiled's mean absolute difference from fp32 is at most so many times plain's, and nats."""


@dataclass
class LossesConfig:
    """What is compared."""

    out: str = "fast-path-losses"
    """Folder of fast_path_losses.json and the runs' logs."""
    compare: Literal["compiled", "fp8"] = "compiled"
    """compiled and plain, both in bf16, with plain in fp32; or --fp8 hybrid with bf16."""
    mean: float | None = None
    """Bound of the first run's mean difference, nats; default: 1.5 times plain's plus 0.002; of fp8 0.02."""


def main() -> None:
    argv = sys.argv[1:]
    at = argv.index("--") if "--" in argv else len(argv)
    own = parse_cli(LossesConfig, argv[:at], "Compare the losses of several ways to train.")
    out = Path(own.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        losses = train_all(RUNS[own.compare], argv[at + 1 :], Path(folder), out)
    *others, reference = losses
    found = {name: distance(losses[name] - losses[reference]) for name in others}
    found["last_loss"] = losses[reference][-1]
    for name in others:
        words = "  ".join(f"{key} {value:.6g}" for key, value in found[name].items())
        print(f"{name} against {reference}: {words}")
    record = found | {"losses": {name: list(values) for name, values in losses.items()}, "command": sys.argv}
    write_atomic(out / "fast_path_losses.json", (json.dumps(record) + "\n").encode())
    bound = FP8_MEAN if own.compare == "fp8" else NOISES * found["plain"]["mean"] + FLOOR
    bound = bound if own.mean is None else own.mean
    if not found[others[0]]["mean"] <= bound:
        raise UserError(f"{others[0]}: the mean difference is outside the bound of {bound:.4g}")


def distance(difference: np.ndarray) -> dict[str, float]:
    """Of the losses of all steps, nats."""
    size = np.abs(difference)
    return {
        "mean": size.mean(),
        "largest": size.max(),
        "at": int(size.argmax()) + 1,
        "first": size[0],
        "signed_mean": difference.mean(),
        "signed_end": difference[-20:].mean(),
    }


def train_all(runs: dict[str, tuple[str, ...]], flags: list[str], folder: Path, out: Path) -> dict[str, np.ndarray]:
    """Each run's losses, one per step."""
    running = {}
    first_port = int(os.environ.get("MASTER_PORT", 29_600))
    for port, (name, own) in enumerate(runs.items(), start=first_port):
        command = [sys.executable, "-m", "megasink.train", *flags, *own, "--save", str(folder / name)]
        command += ["--log-interval", "1", "--save-interval", "0", "--wandb-mode", "disabled"]
        with open(out / f"{name}.log", "w") as log:
            environment = os.environ | {"MASTER_PORT": str(port)}
            running[name] = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    failed = [name for name, process in running.items() if process.wait()]
    if failed:
        raise UserError(f"the {failed[0]} run stopped; see {out / failed[0]}.log")
    records = {name: (folder / name / "metrics.jsonl").read_text().splitlines() for name in running}
    return {name: np.array([json.loads(line)["loss"] for line in lines]) for name, lines in records.items()}


if __name__ == "__main__":
    run_cli(main)
