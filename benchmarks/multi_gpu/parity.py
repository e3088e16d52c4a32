"""Does every layout train as one GPU does? Losses, gradient norms, all sink statistics, by the training command.

    PYTHONPATH=.:benchmarks python -m multi_gpu.parity --out OUT

Each case is a run of its own; OUT/parity.json is rewritten after each. Exit code 1 if one is beyond its bounds. Without
GPUs the same runs over gloo with a tiny model. See docs/multi-gpu.md.
"""

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from throughput.megasink_case import write_tokens
from throughput.provenance import provenance, write_json

from megasink.config.cli import parse_cli
from megasink.errors import run_cli
from megasink.stats.report import SinkReport
from multi_gpu.jobs import chosen, device_name, make_folder, ranks_here, run_job
from tests.helpers.jobs import RANK_PROGRAM, metrics

CASES = {  # ranks, flags
    "tp2": (2, ["--tensor-model-parallel-size", 2]),
    "tp4": (4, ["--tensor-model-parallel-size", 4]),
    "tp2-sp": (2, ["--tensor-model-parallel-size", 2, "--sequence-parallel"]),
    "pp2": (2, ["--pipeline-model-parallel-size", 2]),
    "pp4": (4, ["--pipeline-model-parallel-size", 4]),
    "tp2-pp2-dp2": (8, ["--tensor-model-parallel-size", 2, "--pipeline-model-parallel-size", 2]),
    "zero1": (2, ["--zero-stage", 1]),
    "zero2": (2, ["--zero-stage", 2]),
    "zero3": (2, ["--zero-stage", 3]),
}
STEPS, VOCABULARY = 8, 256
COMMON = [
    *("--vocab-size", VOCABULARY, "--v-scale", "on", "--global-batch-size", 8, "--train-iters", STEPS),
    *("--lr", 1e-3, "--min-lr", 1e-3, "--log-interval", 1, "--wandb-mode", "disabled"),
    # updates follow the gradient: with a small epsilon, weights whose gradient is rounding take whole steps of either
    # sign, and equal layouts drift apart
    *("--adam-eps", 1e-2),
    *("--sink-stats", "full", "--sink-stats-interval", 2, "--sink-stats-full-interval", 4),
]
# two key-value heads: fewer than TP 4, more than one; weights whose products neither vanish nor explode at that width
GPU_MODEL = [
    *("--num-layers", 8, "--hidden-size", 1024, "--ffn-hidden-size", 2816, "--num-attention-heads", 16),
    *("--num-query-groups", 2, "--seq-length", 1024, "--init-method-std", 0.02),
]
CPU_MODEL = [
    *("--num-layers", 4, "--hidden-size", 32, "--ffn-hidden-size", 48, "--num-attention-heads", 4),
    *("--num-query-groups", 2, "--seq-length", 32, "--init-method-std", 0.1),
]


@dataclass(frozen=True)
class Bounds:
    """Largest relative differences. Of a statistic: norm of the difference over the norm, of one by bins of the input's
    norm in the bins that both have; of positions, which rounding can move far where two are nearly equal: the share
    that differs.
    """

    loss: float
    grad_norm: float
    statistics: float
    positions: float


BOUNDS = {"fp32": Bounds(1e-5, 1e-4, 1e-3, 5e-2), "bf16": Bounds(2e-3, 1e-2, 1e-1, 1.0)}


@dataclass
class ParityConfig:
    """What is compared. Lists are separated by commas."""

    cases: str = ""
    """Of tp2, tp4, tp2-sp, pp2, pp4, tp2-pp2-dp2, zero1, zero2, zero3; default: all that the ranks suffice for."""
    precisions: str = "fp32,bf16"
    """Of fp32, bf16."""
    ranks: int = 0
    """Most ranks of a case; 0: the GPUs here, 4 on a CPU."""
    compile: bool = False
    """Compile blocks on a GPU: slower to start, and not what is compared."""
    case_minutes: float = 3.0
    """A run that takes longer has failed."""
    scratch: str = "/dev/shm"
    """Folder for data and run folders, removed at the end."""
    out: str = "parity-out"
    """Folder of parity.json and the runs' logs."""


def main() -> None:
    config = parse_cli(ParityConfig, sys.argv[1:], "Compare layouts with one GPU. Lists are separated by commas.")
    cases = chosen("--cases", config.cases, list(CASES))
    precisions = chosen("--precisions", config.precisions, list(BOUNDS))
    limit, out = ranks_here(config.ranks), make_folder(config.out)
    scratch = make_folder(f"{config.scratch}/megasink-parity-{time.time_ns()}")
    about, rows = provenance("megasink.parity/1", config, device_name()), []
    try:
        tokens = write_tokens(scratch / "tokens", VOCABULARY)
        for precision in precisions:
            reference = None
            for name in ["one", *cases]:
                ranks, flags = CASES.get(name, (1, []))
                row = {"case": name, "ranks": ranks, "precision": precision}
                if ranks > limit:
                    rows.append(row | {"status": f"not run: needs {ranks} ranks, {limit} are here"})
                    write_json(out / "parity.json", about | {"bounds": _plain(BOUNDS), "rows": rows})
                    continue
                run = scratch / f"{name}-{precision}"
                status = train([*flags, "--precision", precision], ranks, tokens, run, out, config)
                if name == "one":
                    reference = run if status == "ok" else None
                elif status == "ok" and reference is None:
                    status = "not compared: the run on one GPU failed"
                rows.append(
                    row | (compare(reference, run, BOUNDS[precision]) if status == "ok" else {"status": status})
                )
                write_json(out / "parity.json", about | {"bounds": _plain(BOUNDS), "rows": rows})
    finally:
        shutil.rmtree(scratch)
    print(table(rows))
    sys.exit(any(row["status"] != "ok" and not row["status"].startswith("not run") for row in rows))


def train(flags: list, ranks: int, tokens: Path, run: Path, out: Path, config: ParityConfig) -> str:
    """`ok`, or what became of the run."""
    on_gpu = torch.cuda.is_available()
    words = [*COMMON, *(GPU_MODEL if on_gpu else CPU_MODEL), "--micro-batch-size", 1, "--data-path", tokens, *flags]
    words += ["--save", run, "--save-interval", 0] + ([] if config.compile else ["--no-compile"])
    ended = run_job(RANK_PROGRAM, words, ranks, out / f"{run.name}.log", 60.0 * config.case_minutes)
    return "ok" if ended.codes == [0] * ranks else f"failed {ended.codes}: {ended.last_words}"


def compare(reference: Path, run: Path, bounds: Bounds) -> dict:
    """Largest relative differences over all steps and reports."""
    found = {}
    for name in ("loss", "grad_norm"):
        expected, seen = (np.array([record[name] for record in metrics(folder)]) for folder in (reference, run))
        found[name] = float(np.max(np.abs(seen / expected - 1.0)))
    differences: dict[str, float] = {}
    for path in sorted((reference / "sink_stats").glob("*.npz")):
        expected, seen = SinkReport.load(path), SinkReport.load(run / "sink_stats" / path.name)
        for name, difference in array_differences(expected, seen).items():
            differences[name] = max(difference, differences.get(name, 0.0))
    places = max(difference for name, difference in differences.items() if name.endswith("_position"))
    worst = max((name for name in differences if not name.endswith("_position")), key=differences.get)
    within = found["loss"] <= bounds.loss and found["grad_norm"] <= bounds.grad_norm
    within = within and differences[worst] <= bounds.statistics and places <= bounds.positions
    found |= {"statistics": differences[worst], "worst_statistic": worst, "positions": places}
    found["each_statistic"] = differences
    return {"status": "ok" if within else "beyond its bounds"} | found


def array_differences(expected: SinkReport, seen: SinkReport) -> dict[str, float]:
    """By the names of the arrays, as Bounds says; infinite for one that is missing, or not a number elsewhere."""
    found = {}
    for name, array in expected.arrays.items():
        other = seen.arrays.get(name)
        if other is not None and name.endswith("_by_input_norm"):
            both = np.isfinite(array) & np.isfinite(other)
            array, other = array[both], other[both]
        if other is None or other.shape != array.shape or not np.array_equal(np.isnan(array), np.isnan(other)):
            found[name] = float("inf")
            continue
        if name.endswith("_position"):
            found[name] = float(np.mean(array != other))
            continue
        size, difference = np.linalg.norm(np.nan_to_num(array)), np.linalg.norm(np.nan_to_num(other - array))
        found[name] = float(difference / size) if size > 0 else float(difference)
    return found


def table(rows: list[dict]) -> str:
    """One line a case."""
    heading = f"{'case':<14}{'ranks':>6}{'precision':>11}{'loss':>10}{'grad norm':>11}{'statistics':>12}"
    lines = [f"{heading}{'positions':>11}  worst statistic, status"]
    for row in rows:
        numbers = "".join(
            f"{row[name]:>{width}.1e}" if name in row else f"{'-':>{width}}"
            for name, width in (("loss", 10), ("grad_norm", 11), ("statistics", 12), ("positions", 11))
        )
        worst = f"{row['worst_statistic']}, " if "worst_statistic" in row else ""
        lines.append(f"{row['case']:<14}{row['ranks']:>6}{row['precision']:>11}{numbers}  {worst}{row['status']}")
    return "\n".join(lines)


def _plain(bounds: dict[str, Bounds]) -> dict:
    return {precision: vars(bound) for precision, bound in bounds.items()}


if __name__ == "__main__":
    run_cli(main)
