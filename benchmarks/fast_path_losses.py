"""Do the fast paths train like the plain ones? The same run in several ways, loss by loss, side by side.

    python benchmarks/fast_path_losses.py --out OUT -- --config examples/pretrain_0.1b.yaml --data-path DATA ...
    python benchmarks/fast_path_losses.py --compare fp8 --out OUT -- --config examples/pretrain_0.1b.yaml ...

Everything after `--` goes to the training command of all runs. Two ways to round drift apart in training, and how far
is a question of the recipe, so each comparison has its own measure of noise:
`compiled`: compiled and with --no-compile in bf16, both against --no-compile in fp32; compiled may not drift much
further than plain. `order`: compiled and plain, each with micro-batches of 8, 4 and 2, which sum in another order;
pairs of one compiled and one plain may not be much further apart than pairs of a kind. `fp8`: --fp8 hybrid and
--no-compile, both against compiled bf16. Prints the differences, writes OUT/fast_path_losses.json; exit code 1 outside
the bound.
"""

import itertools
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
    "order": {
        f"{name}-{size}": (*flags, "--micro-batch-size", str(size))
        for size in (2, 4, 8)
        for name, flags in (("compiled", ()), ("plain", ("--no-compile",)))
    },
    "fp8": {"fp8": ("--fp8", "hybrid"), "plain": ("--no-compile",), "bf16": ()},
}
NOISES, FLOOR = 1.5, 0.002
"""The mean absolute difference is at most so many times the noise's, and nats."""
FP8_BEYOND = 0.02
"""Nats by which fp8's may exceed plain bf16's."""


@dataclass
class LossesConfig:
    """What is compared."""

    out: str = "fast-path-losses"
    """Folder of fast_path_losses.json and the runs' logs."""
    compare: Literal["compiled", "order", "fp8"] = "compiled"
    """compiled and plain bf16 with fp32; compiled with plain in several orders of summing; or fp8 and plain with
    compiled."""
    mean: float | None = None
    """Bound of the mean difference, nats; default: 1.5 times the noise's plus 0.002; of fp8 plain's plus 0.02."""


def main() -> None:
    argv = sys.argv[1:]
    at = argv.index("--") if "--" in argv else len(argv)
    own = parse_cli(
        LossesConfig,
        argv[:at],
        "Compare the losses of several ways to train. Flags of the training command follow after --.",
    )
    out = Path(own.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        losses = train_all(RUNS[own.compare], argv[at + 1 :], Path(folder), out)
    found = by_kind(losses) if own.compare == "order" else by_reference(losses)
    for name, values in found.items():
        print(f"{name}: " + "  ".join(f"{key} {value:.6g}" for key, value in values.items()))
    record = found | {"losses": {name: list(values) for name, values in losses.items()}, "command": sys.argv}
    write_atomic(out / "fast_path_losses.json", (json.dumps(record) + "\n").encode())
    judged, noise = (values["mean"] for values in list(found.values())[:2])
    bound = noise + FP8_BEYOND if own.compare == "fp8" else NOISES * noise + FLOOR
    bound = bound if own.mean is None else own.mean
    if not judged <= bound:
        raise UserError(f"{next(iter(found))}: the mean difference is outside the bound of {bound:.4g}")


def by_reference(losses: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Each run's distance from the last: what is judged first, then the noise."""
    *others, reference = losses
    return {f"{name} against {reference}": distance(losses[name] - losses[reference]) for name in others}


def by_kind(losses: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Mean distances of all pairs of a compiled and a plain run (compiled minus plain), and of all pairs of a kind."""
    pairs = list(itertools.combinations(sorted(losses), 2))
    mixed = [distance(losses[a] - losses[b]) for a, b in pairs if a.split("-")[0] != b.split("-")[0]]
    alike = [distance(losses[a] - losses[b]) for a, b in pairs if a.split("-")[0] == b.split("-")[0]]
    groups = {"compiled against plain": mixed, "of a kind": alike}
    keys = [key for key in mixed[0] if key != "at"]
    return {name: {key: np.mean([each[key] for each in group]) for key in keys} for name, group in groups.items()}


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
