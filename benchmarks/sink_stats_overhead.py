"""What sink statistics and V-scale cost a training step, in one process: off against light and full, off against on.

    python benchmarks/sink_stats_overhead.py --config examples/pretrain_1b.yaml --global-batch-size 8
    python benchmarks/sink_stats_overhead.py --num-layers 4 --hidden-size 64 --ffn-hidden-size 128 \
        --num-attention-heads 4 --seq-length 128 --vocab-size 256 --precision fp32 --global-batch-size 8   # a CPU

Takes every flag of training; random tokens, everything resident, no files. Steps of each kind alternate, so that drift
of the machine's speed falls on all; a step ends when the device is done and, with statistics, the report and its
scalars are made. Prints a table, writes all step times as JSON.
"""

import gc
import json
import os
import statistics
import sys
import time
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

from megasink.config import RunConfig
from megasink.config.checks import check_run
from megasink.config.cli import parse_cli
from megasink.errors import run_cli
from megasink.train.launch import init_environment

WARM_UP = 3
"""Steps of each kind that are not counted: compilation, allocation."""


@dataclass
class BenchmarkConfig(RunConfig):
    """A training run, and how it is timed."""

    rounds: int = 12
    """Timed steps of each kind for each model."""
    output: str = "sink_stats_overhead.json"
    """Where the step times go."""
    models: tuple[str, ...] = field(default_factory=lambda: ("off", "on", "off"))
    """Values of --v-scale, one model after the other; a repeated one shows the noise."""


def main() -> None:
    config = parse_cli(BenchmarkConfig, init_environment(sys.argv[1:]), "Measure the cost of sink statistics.")
    config.model.vocab_size = config.model.vocab_size or 32000
    config.checkpoint.save = config.checkpoint.save or "nothing is written there"
    check_run(config, int(os.environ["WORLD_SIZE"]))
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns while it guesses
    from megasink.train.distributed import end_distributed, start_distributed

    device = start_distributed()
    results = []
    for v_scale in config.models:
        results.append({"v_scale": v_scale, "seconds": measure(config, v_scale, device)})
        if device.type == "cuda":
            results[-1]["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    if int(os.environ["RANK"]) == 0:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {os.cpu_count()} cores"
        print(f"\n{name}, torch {torch.__version__}\n")
        print_table(results)
        Path(config.output).write_text(json.dumps({"device": name, "results": results}, indent=1), encoding="utf-8")
    end_distributed()


def measure(config: BenchmarkConfig, v_scale: str, device) -> dict[str, list[float]]:
    """Seconds of each timed step by kind, of a fresh model."""
    import torch

    from megasink.model.llama import blocks_of
    from megasink.parallel.layout import build_layout
    from megasink.stats.recorder import SinkRecorder
    from megasink.stats.scalars import scalars
    from megasink.train.engine import TrainEngine

    config = deepcopy(config)
    config.model.v_scale = v_scale
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

    def step(kind: str) -> float:
        began = time.perf_counter()
        if kind != "off":
            recorder.start(kind)
        loss = engine.train_batch(batch)
        if kind != "off":
            scalars(recorder.report(0, engine.gradient_scale))
        loss.item()
        return time.perf_counter() - began

    seconds: dict[str, list[float]] = {"off": [], "light": [], "full": []}
    for at in range(WARM_UP + config.rounds):
        for kind, times in seconds.items():
            step(kind)  # a step after one of another kind is not like its own: the second counts
            elapsed = step(kind)
            if at >= WARM_UP:
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
