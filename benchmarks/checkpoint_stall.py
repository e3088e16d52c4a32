"""How long a checkpoint keeps training waiting, synchronous against asynchronous, on random tokens.

    python benchmarks/checkpoint_stall.py --config examples/pretrain_1b.yaml --save /tmp/stall --vocab-size 32000
    deepspeed benchmarks/checkpoint_stall.py ...        # several ranks

Takes every flag of training. Prints a table and writes SAVE/checkpoint_stall.json, row by row. The folder needs room
for two checkpoints; the page cache is part of what is measured, as it is in a run.
"""

import json
import os
import shutil
import statistics
import sys
import time
from pathlib import Path

from megasink.config import RunConfig
from megasink.config.checks import check_run
from megasink.config.cli import parse_cli
from megasink.data.atomic import write_atomic
from megasink.errors import run_cli
from megasink.train.launch import init_environment

STEPS = 6
"""Timed before the saves, and at most so many times this while one is being written."""


def main() -> None:
    config = parse_cli(
        RunConfig, init_environment(sys.argv[1:]), "Measure how long a checkpoint keeps training waiting."
    )
    config.model.vocab_size = config.model.vocab_size or 32000
    check_run(config, int(os.environ["WORLD_SIZE"]))
    measure(config)


def measure(config: RunConfig) -> None:
    import torch
    import torch.distributed as dist

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns while it guesses
    from megasink.checkpoint.saver import CheckpointSaver
    from megasink.parallel.layout import build_layout
    from megasink.train.distributed import end_distributed, start_distributed
    from megasink.train.engine import TrainEngine

    device = start_distributed()
    parallel, training, model = config.parallel, config.training, config.model
    layout = build_layout(
        parallel.tensor_model_parallel_size,
        parallel.pipeline_model_parallel_size,
        parallel.sequence_parallel,
        parallel.context_parallel_size,
    )
    engine = TrainEngine(config, layout, device)
    micro_batches = training.global_batch_size // (training.micro_batch_size * layout.data.size)
    generator = torch.Generator().manual_seed(layout.data.rank)
    tokens = torch.randint(model.vocab_size, (training.micro_batch_size, model.seq_length), generator=generator)
    batch = [(tokens, tokens)] * micro_batches

    def timed_step() -> float:
        began = time.monotonic()
        engine.train_batch(batch).item()
        return time.monotonic() - began

    for _ in range(3):
        timed_step()
    undisturbed = statistics.median(timed_step() for _ in range(STEPS))
    checkpoints = Path(config.checkpoint.save) / "checkpoints"
    if dist.get_rank() == 0:
        checkpoints.mkdir(parents=True, exist_ok=True)
        print("| save | training waits, s | visible after, s | GB | step while writing, s | step otherwise, s |")
        print("|---|---:|---:|---:|---:|---:|", flush=True)
    dist.barrier()
    rows = []
    # the first asynchronous save also allocates its host memory
    for step, asynchronous in enumerate((False, True, True), start=1):
        config.checkpoint.async_save = asynchronous
        saver = CheckpointSaver(checkpoints, config, layout, print)
        began = time.monotonic()
        saver.save({"step": step}, engine.model, engine.engine)
        stall = saver.stall_s
        during = []
        writing = torch.ones((), device=device)
        while asynchronous and writing.item() and len(during) < 50 * STEPS:
            during.append(timed_step())
            writing = torch.tensor(float(saver.finished < saver.started), device=device)
            dist.all_reduce(writing, op=dist.ReduceOp.MAX)
        saver.close()
        folder = checkpoints / f"step_{step:08d}"
        rows.append(
            {
                "mode": "asynchronous" if asynchronous else "synchronous",
                "stall_s": stall,
                "until_visible_s": time.monotonic() - began,
                "steps_while_writing": len(during),
                "step_while_writing_s": statistics.median(during) if during else None,
                "undisturbed_step_s": undisturbed,
                "bytes": sum(path.stat().st_size for path in folder.iterdir()),
            }
        )
        if dist.get_rank() == 0:
            print(_line(rows[-1]), flush=True)
            write_atomic(checkpoints.parent / "checkpoint_stall.json", (json.dumps(rows, indent=1) + "\n").encode())
            shutil.rmtree(folder)
    end_distributed()


def _line(row: dict) -> str:
    during = "" if row["step_while_writing_s"] is None else f"{row['step_while_writing_s']:.3f}"
    return (
        f"| {row['mode']} | {row['stall_s']:.3f} | {row['until_visible_s']:.2f} | {row['bytes'] / 1e9:.2f} "
        f"| {during} | {row['undisturbed_step_s']:.3f} |"
    )


if __name__ == "__main__":
    run_cli(main)
