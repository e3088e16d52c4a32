"""Do the fast paths train like the plain ones? The same run compiled and with --no-compile, loss by loss; or in fp8 and
in bf16; or, to know what rounding alone does, twice plain, with micro-batches of 4 and of 8 sequences.

    python benchmarks/fast_path_losses.py --out OUT -- --config examples/pretrain_0.1b.yaml --data-path DATA ...
    python benchmarks/fast_path_losses.py --pair fp8 --out OUT -- --config examples/pretrain_0.1b.yaml ...
    python benchmarks/fast_path_losses.py --pair order --out OUT -- --global-batch-size 8 ...

Everything after `--` goes to the training command of both runs, which go side by side. The bounds are stated
beforehand: two orders of the same sums in bf16 drift apart, products in fp8 further, and a fault would be far outside.
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


@dataclass(frozen=True)
class Pair:
    """Two runs by name with the flags of their own, the second to measure the first by, and what they may differ by."""

    runs: dict[str, tuple[str, ...]]
    largest: float
    """Of any step's loss, nats."""
    mean: float
    """Over all steps."""


PAIRS = {
    "compiled": Pair({"compiled": (), "plain": ("--no-compile",)}, largest=0.05, mean=0.01),
    "order": Pair(
        {f"micro_batch_{size}": ("--no-compile", "--micro-batch-size", str(size)) for size in (4, 8)},
        largest=0.05,
        mean=0.01,
    ),
    "fp8": Pair({"fp8": ("--fp8", "hybrid"), "bf16": ("--fp8", "off")}, largest=0.1, mean=0.02),
}


@dataclass
class LossesConfig:
    """How two runs are compared."""

    out: str = "fast-path-losses"
    """Folder of fast_path_losses.json and the runs' logs."""
    pair: Literal["compiled", "order", "fp8"] = "compiled"
    """compiled against --no-compile; --no-compile with micro-batches of 4 and of 8; or --fp8 hybrid against bf16."""
    largest: float | None = None
    """Bound of the difference of any step's loss, nats; default: 0.05, of fp8 0.1."""
    mean: float | None = None
    """Bound of its mean over all steps; default: 0.01, of fp8 0.02."""


def main() -> None:
    argv = sys.argv[1:]
    at = argv.index("--") if "--" in argv else len(argv)
    own = parse_cli(LossesConfig, argv[:at], "Compare the losses of two ways to train.")
    pair, out = PAIRS[own.pair], Path(own.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        losses = train_both(pair.runs, argv[at + 1 :], Path(folder), out)
    first, second = losses.values()
    signed, difference = first - second, np.abs(first - second)
    found = {"steps": len(difference), "largest": difference.max(), "at": int(difference.argmax()) + 1}
    found |= {"mean": difference.mean(), "first": difference[0], "signed_mean": signed.mean()}
    found |= {"signed_end": signed[-20:].mean(), "last_loss": second[-1]}
    for name, value in found.items():
        print(f"{name:>12}  {value:.6g}")
    record = found | {name: list(values) for name, values in losses.items()} | {"command": sys.argv}
    write_atomic(out / "fast_path_losses.json", (json.dumps(record) + "\n").encode())
    largest = pair.largest if own.largest is None else own.largest
    mean = pair.mean if own.mean is None else own.mean
    if not (found["largest"] <= largest and found["mean"] <= mean):
        raise UserError(f"outside the bounds: largest {largest}, mean {mean}")


def train_both(runs: dict[str, tuple[str, ...]], flags: list[str], folder: Path, out: Path) -> dict[str, np.ndarray]:
    """Each run's losses, one per step."""
    running = {}
    for port, (name, own) in enumerate(runs.items(), start=29_600):
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
