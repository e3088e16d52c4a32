"""What sink statistics and V-scale cost a training step, in one run: off against light and full, off against on.

    python benchmarks/sink_stats_overhead.py --config examples/pretrain_1b.yaml --global-batch-size 8
    python benchmarks/sink_stats_overhead.py --num-layers 4 --hidden-size 64 --ffn-hidden-size 128 \
        --num-attention-heads 4 --seq-length 128 --vocab-size 256 --precision fp32 --global-batch-size 8   # a CPU

Takes every flag of training; random tokens, everything resident, no files. One process for each model; in it runs of
steps of each kind alternate, so that drift of the machine's speed falls on all. As in training a report is read one
step late; a run of steps ends when the device is done and the last report's scalars are made. Prints a table, writes
all times as JSON.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from megasink.config import RunConfig
from megasink.config.checks import check_run
from megasink.config.cli import parse_cli
from megasink.errors import UserError, run_cli
from megasink.train.launch import init_environment

STEPS = 5
"""Of one kind in a row, the first of which is not counted: a step after one of another kind is not like its own."""


@dataclass
class BenchmarkConfig(RunConfig):
    """A training run, and how it is timed."""

    rounds: int = 6
    """Runs of steps of each kind for each model, after one that is not counted."""
    out: str = "sink_stats_overhead.json"
    """JSON file for all step times."""
    models: tuple[str, ...] = field(default_factory=lambda: ("off", "on", "off"))
    """Values of --v-scale, one model after the other; a repeated one shows the noise."""


def main() -> None:
    config = parse_cli(BenchmarkConfig, init_environment(sys.argv[1:]), "Measure the cost of sink statistics.")
    config.model.vocab_size = config.model.vocab_size or 32000
    config.checkpoint.save = config.checkpoint.save or "nothing is written there"
    check_run(config, int(os.environ["WORLD_SIZE"]))
    if len(config.models) == 1:
        Path(config.out).write_text(json.dumps(measure_one(config), indent=1), encoding="utf-8")
    else:  # DeepSpeed gives no memory back within a process
        found = []
        for v_scale in config.models:
            found += run_alone(v_scale)
            Path(config.out).write_text(json.dumps(found, indent=1), encoding="utf-8")  # should the time run out
        print(f"\n{found[0]['device']}, torch {found[0]['torch']}\n")
        print_table(found)


def run_alone(v_scale: str) -> list[dict]:
    """This program for one model in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part.json"
        command = [sys.executable, __file__, *sys.argv[1:], "--models", v_scale, "--out", str(part)]
        if subprocess.run(command).returncode:
            raise UserError(f"V-scale {v_scale} was not measured; the reason stands above")
        return json.loads(part.read_text(encoding="utf-8"))


def measure_one(config: BenchmarkConfig) -> list[dict]:
    """The one model of config.models, in this process."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns while it guesses
    from megasink.train.distributed import end_distributed, start_distributed

    device = start_distributed()
    config.model.v_scale = config.models[0]
    found = {"v_scale": config.model.v_scale, "seconds": measure(config, device), "torch": torch.__version__}
    if device.type == "cuda":
        found |= {
            "device": torch.cuda.get_device_name(device),
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        }
    else:
        found["device"] = f"CPU, {os.cpu_count()} cores"
    end_distributed()
    return [found]


def measure(config: BenchmarkConfig, device) -> dict[str, list[float]]:
    """Seconds a step by kind, the mean of each run of steps."""
    import torch

    from megasink.model.llama import blocks_of
    from megasink.parallel.layout import build_layout
    from megasink.stats.recorder import SinkRecorder
    from megasink.stats.scalars import scalars
    from megasink.train.engine import TrainEngine

    parallel, training, model = config.parallel, config.training, config.model
    layout = build_layout(
        parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size, parallel.sequence_parallel
    )
    engine = TrainEngine(config, layout, device)
    recorder = SinkRecorder(model, layout, blocks_of(engine.model))
    micro_batches = training.global_batch_size // (training.micro_batch_size * layout.data.size)
    generator = torch.Generator().manual_seed(layout.data.rank)
    tokens = torch.randint(model.vocab_size, (training.micro_batch_size, model.seq_length), generator=generator)
    batch = [(tokens, tokens)] * micro_batches

    def begin(kind: str):
        """One step; the loss, and what gives its report."""
        if kind != "off":
            recorder.start(kind)
        loss = engine.train_batch(batch)
        return loss, None if kind == "off" else recorder.report_late(0, engine.gradient_scale)

    def run(kind: str) -> float:
        begin(kind)[0].item()
        began = time.perf_counter()
        report = None
        for _ in range(STEPS - 1):
            earlier, (loss, report) = report, begin(kind)
            if earlier is not None:
                scalars(earlier())
        if report is not None:
            scalars(report())
        loss.item()
        return (time.perf_counter() - began) / (STEPS - 1)

    seconds: dict[str, list[float]] = {"off": [], "light": [], "full": []}
    for at in range(1 + config.rounds):
        for kind, times in seconds.items():
            elapsed = run(kind)
            if at > 0:
                times.append(elapsed)
    return seconds


def print_table(results: list[dict]) -> None:
    """Medians; the cost of full reports spread over the steps between two."""
    print("| V-scale | off, ms | light every step | full, one step | full every 10 | full every 100 | peak GiB |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for result in results:
        off, light, full = (statistics.median(result["seconds"][kind]) for kind in ("off", "light", "full"))
        spread = [1.0 + (full / off - 1.0) / every for every in (10, 100)]
        peak = f"{result['peak_gib']:.1f}" if "peak_gib" in result else ""
        print(
            f"| {result['v_scale']} | {off * 1e3:.1f} | {light / off:.4f}x | {full / off:.3f}x | {spread[0]:.4f}x "
            f"| {spread[1]:.4f}x | {peak} |"
        )
    base = [statistics.median(r["seconds"]["off"]) for r in results if r["v_scale"] == "off"]
    valve = [statistics.median(r["seconds"]["off"]) for r in results if r["v_scale"] == "on"]
    if base and valve:
        print(f"\nV-scale on: {statistics.mean(valve) / statistics.mean(base):.4f}x of off; ", end="")
        print(f"off against itself: {max(base) / min(base):.4f}x")


if __name__ == "__main__":
    run_cli(main)
