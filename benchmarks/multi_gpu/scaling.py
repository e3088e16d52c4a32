"""How throughput grows with GPUs, weak and strong, for each way of splitting a model; and what communication costs.

    PYTHONPATH=.:benchmarks python -m multi_gpu.scaling --shape 1b --out OUT

Every point is a run of the training command. OUT/scaling.json is rewritten after each, OUT/*.log is what the ranks
said. Without GPUs the same over gloo with a tiny model. See docs/multi-gpu.md.
"""

import json
import shutil
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from throughput.megasink_case import write_tokens
from throughput.provenance import provenance, write_json
from throughput.shapes import Shape, shape_named

from megasink.config import RunConfig
from megasink.config.cli import load_yaml, parse_cli
from megasink.errors import UserError, run_cli
from megasink.plan.plan import Machine, make_plan
from megasink.train.flops import PEAK_FLOPS
from multi_gpu.jobs import chosen, device_name, make_folder, ranks_here, run_job
from multi_gpu.peers import PEERS
from tests.helpers.jobs import metrics

SPLITS = {  # on n > 1 ranks; plain data parallelism in bf16 is ZeRO-1
    "zero1": lambda n: ["--zero-stage", 1],
    "zero3": lambda n: ["--zero-stage", 3],
    "tp": lambda n: ["--tensor-model-parallel-size", n],
    "tp-sp": lambda n: ["--tensor-model-parallel-size", n, "--sequence-parallel"],
    "pp": lambda n: ["--pipeline-model-parallel-size", n],
}
REPLICATED = ("zero1", "zero3", "fsdp2-torchtitan", "fsdp2-transformers")
"""Each rank takes its share of the sequences; otherwise all work on the same."""
GOALS = {("zero1", 8): 0.95, ("tp", 8): 0.80, ("tp-sp", 8): 0.80}
"""Least weak efficiency on so many GPUs; for pp it is BUBBLE_GOAL of what the bubble leaves."""
BUBBLE_GOAL = 0.95
PROFILED = 2
_ALLOCATOR = ("reserved_gib", "device_allocations", "device_frees")
MEASURED_PROGRAM = "from multi_gpu.measured_rank import run; run()"
PEER_PROGRAM = "from multi_gpu.peers import run; run()"


@dataclass
class ScalingConfig:
    """What is measured. Lists are separated by commas."""

    shape: str = "1b"
    """tiny, 0.1b, 0.3b, 1b or 7b-cut."""
    splits: str = "zero1,zero3,tp,tp-sp,pp"
    """zero1 (plain data parallelism in bf16), zero3, tp, tp-sp, pp."""
    scaling: str = "weak,strong"
    """weak: a step's sequences grow with the GPUs; strong: they do not."""
    ranks: str = ""
    """Numbers of GPUs; default: 1, 2, 4, 8 as far as there are so many; 1, 2 on a CPU."""
    micro_batch_size: int = 4
    """Sequences per forward pass."""
    accumulate: int = 8
    """Micro-batches per GPU and step; strong: times the largest number of GPUs, in all."""
    steps: int = 8
    """Timed steps, whose median counts; 2 more are profiled."""
    warmup: int = 4
    """Untimed steps before those."""
    peers: str = ""
    """Also in weak scaling: fsdp2-torchtitan, fsdp2-transformers, megatron-tp; default: none."""
    case_minutes: float = 5.0
    """A run that takes longer is ended and reported as such."""
    scratch: str = "/dev/shm"
    """Folder for data and run folders, removed at the end."""
    out: str = "scaling-out"
    """Folder of scaling.json and the runs' logs."""


def main() -> None:
    config = parse_cli(
        ScalingConfig,
        sys.argv[1:],
        "Measure how training scales over the GPUs of this machine. Lists are separated by commas.",
    )
    shape, counts, points = shape_named(config.shape), gpu_counts(config.ranks), []
    for scaling in chosen("--scaling", config.scaling, ["weak", "strong"]):
        for split in chosen("--splits", config.splits, list(SPLITS)):
            points += [(scaling, split, ranks) for ranks in counts if fits(shape, split, ranks)]
    if config.peers:
        for peer in chosen("--peers", config.peers, list(PEERS)):
            points += [("weak", peer, ranks) for ranks in counts if fits(shape, peer, ranks)]
    out = make_folder(config.out)
    scratch = make_folder(f"{config.scratch}/megasink-scaling-{time.time_ns()}")
    about, rows = provenance("megasink.scaling/1", config, device_name(), ("torchtitan",)), []
    measured: dict[tuple, dict] = {}
    try:
        tokens = write_tokens(scratch / "tokens", shape.vocab_size)
        for scaling, split, ranks in points:
            sequences = config.micro_batch_size * config.accumulate * (ranks if scaling == "weak" else max(counts))
            row = {"scaling": scaling, "split": split, "ranks": ranks, "sequences": sequences}
            # one GPU is one GPU, however more would be split; ZeRO-3 gathers weights there too
            known = (sequences, split if ranks > 1 or split in PEERS or split == "zero3" else "one", ranks)
            if known not in measured:
                folder = scratch / f"{scaling}-{split}-{ranks}"
                folder.mkdir()
                measured[known] = measure(config, shape, row, tokens, folder, out)
                shutil.rmtree(folder)
            rows.append(row | measured[known])
            write_json(out / "scaling.json", about | {"rows": with_efficiency(rows)})
    finally:
        shutil.rmtree(scratch)
    rows = with_efficiency(rows)
    print(table(rows))
    sys.exit(any(row["status"] not in ("ok", "below its goal") for row in rows))


def gpu_counts(words: str) -> list[int]:
    """Raises UserError for numbers that are none or too large."""
    if not words:
        most = ranks_here(0) if torch.cuda.is_available() else 2
        return [count for count in (1, 2, 4, 8) if count <= most]
    try:
        return sorted({ranks_here(int(word)) for word in words.split(",")})
    except ValueError:
        raise UserError(f"--ranks {words}: give whole numbers such as 1,2,4") from None


def fits(shape: Shape, split: str, ranks: int) -> bool:
    """Whether the model can be split so."""
    if split == "pp":
        return ranks <= shape.num_layers
    return split in REPLICATED or shape.num_attention_heads % ranks == 0


def measure(config: ScalingConfig, shape: Shape, row: dict, tokens: Path, folder: Path, out: Path) -> dict:
    """What is to be added to the row."""
    split, ranks, sequences = row["split"], row["ranks"], row["sequences"]
    micro_batches = sequences // (config.micro_batch_size * (ranks if split in REPLICATED else 1))
    last = config.warmup + config.steps
    if split in PEERS:
        program = PEER_PROGRAM
        flags = [folder, last, PROFILED, split, config.shape, config.micro_batch_size, micro_batches]
    else:
        program = MEASURED_PROGRAM
        flags = [
            *(folder, last, PROFILED, *shape.flags()),
            *("--micro-batch-size", config.micro_batch_size, "--global-batch-size", sequences),
            *("--train-iters", last + 1000, "--save-interval", 0, "--data-path", tokens, "--save", folder / "run"),
            *("--lr", 3e-4, "--min-lr", 3e-5, "--log-interval", 1, "--wandb-mode", "disabled"),
            *("--v-scale", "on", "--sink-stats", "off"),
            *(SPLITS[split](ranks) if ranks > 1 or split == "zero3" else []),
        ]
    log = out / f"{folder.name}.log"
    ended = run_job(program, flags, ranks, log, 60.0 * config.case_minutes)
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("rank_*.json"))]
    if ended.codes != [0] * ranks or len(reports) != ranks:
        return {"status": f"failed {ended.codes}: {ended.last_words}"}
    times = [record["step_time_s"] for record in metrics(folder / "run")][config.warmup : last]
    rate = sequences * shape.seq_length / statistics.median(times) / ranks
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in device_name()), None)
    peaks = [report["peak_gib"] for report in reports if report["peak_gib"] is not None]
    return {
        "status": "ok",
        "planned": None if split in PEERS else planned(folder / "run", ranks),
        "micro_batches": micro_batches,
        "steps_s": times,
        "tokens_per_second_per_gpu": rate,
        "mfu": None if peak is None else rate * shape.flops_per_token / peak,
        "peak_gib": max(peaks, default=None),
        "allocator": [{name: report[name] for name in _ALLOCATOR if name in report} for report in reports],
        "profiles": [report["profile"] for report in reports if "profile" in report],
    }


def planned(run: Path, ranks: int) -> dict:
    """What tools/plan.py says of the run, for the planner's kind of GPU that is nearest to the one here."""
    gpu = next((kind for kind in ("h200", "a100") if kind.upper() in device_name()), "h100")
    plan = make_plan(load_yaml(RunConfig, run / "config.yaml"), Machine.of(1, ranks, gpu))
    return {
        "gpu": gpu,
        "step_s": plan.step_time,
        "peak_gib": plan.peak / 2**30,
        "time": vars(plan.times[plan.slowest]),
        "wire_bytes": [sum(message.wire_bytes for message in messages) for messages in plan.messages],
    }


def with_efficiency(rows: list[dict]) -> list[dict]:
    """Tokens/s/GPU over that on one GPU, and over what a pipeline's bubble leaves of it; goals that are missed."""
    single = {(row["scaling"], row["split"]): row for row in rows if row["ranks"] == 1 and row["status"] == "ok"}
    found = []
    for row in rows:
        base = single.get((row["scaling"], row["split"]))
        if row["status"] == "ok" and base is not None:
            efficiency = row["tokens_per_second_per_gpu"] / base["tokens_per_second_per_gpu"]
            row = row | {"efficiency": efficiency}
            goal = GOALS.get((row["split"], row["ranks"])) if row["scaling"] == "weak" else None
            if row["split"] == "pp":
                # 1F1B: of m + p - 1 turns m do work (arXiv 2104.04473, section 2.2)
                row["bubble_leaves"] = row["micro_batches"] / (row["micro_batches"] + row["ranks"] - 1)
                goal = BUBBLE_GOAL * row["bubble_leaves"]
            if goal is not None and row["ranks"] > 1:
                row |= {"goal": goal, "status": "ok" if efficiency >= goal else "below its goal"}
        found.append(row)
    return found


def table(rows: list[dict]) -> str:
    """One line a point."""
    heading = f"{'scaling':<8}{'split':<20}{'GPUs':>5}{'tokens/s/GPU':>14}{'MFU':>7}{'GiB':>7}"
    # measured over planned
    lines = [f"{heading}{'exposed':>9}{'efficiency':>12}{'goal':>7}{'s/plan':>8}{'GiB/plan':>10}  status"]
    for row in rows:
        line = f"{row['scaling']:<8}{row['split']:<20}{row['ranks']:>5}"
        if "tokens_per_second_per_gpu" in row:
            line += f"{row['tokens_per_second_per_gpu']:>14,.0f}{_form(row['mfu'], 7, '.1%')}"
            line += f"{_form(row['peak_gib'], 7, '.1f')}{_form(exposed_share(row), 9, '.1%')}"
            line += f"{_form(row.get('efficiency'), 12, '.3f')}{_form(row.get('goal'), 7, '.3f')}"
            line += f"{_form(over_plan(row, 'step_s'), 8, '.2f')}{_form(over_plan(row, 'peak_gib'), 10, '.2f')}"
        lines.append(f"{line}  {row['status']}")
    return "\n".join(lines)


def exposed_share(row: dict) -> float | None:
    """Of a step, on the rank that waits longest; None where no profiler ran."""
    return max(
        (one["exposed_ms"] * 1e-3 / statistics.median(row["steps_s"]) for one in row.get("profiles", [])), default=None
    )


def over_plan(row: dict, name: str) -> float | None:
    """Measured step time or peak memory over the planned one; None where one of them is not known."""
    seen = statistics.median(row["steps_s"]) if name == "step_s" else row["peak_gib"]
    return None if row["planned"] is None or seen is None else seen / row["planned"][name]


def _form(value: float | None, width: int, form: str) -> str:
    return f"{'-' if value is None else format(value, form):>{width}}"


if __name__ == "__main__":
    run_cli(main)
