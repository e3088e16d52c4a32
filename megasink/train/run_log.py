"""What a run says: metrics.jsonl, sink reports, wandb, and readable lines on the console. Lives on rank 0."""

import json
import math
import os
import time
from pathlib import Path

from megasink.config import RunConfig
from megasink.stats.report import SinkReport, scalars
from megasink.train.run_folder import RunFolder, write_text
from megasink.train.tracker import Tracker


class RunLog:
    """Appends to the run folder; lines of steps after `first_step` left by a killed run are dropped first."""

    def __init__(self, folder: RunFolder, config: RunConfig, first_step: int):
        self.folder = folder
        self.config = config
        self.scalars = folder.sink_stats / "scalars.jsonl"
        self.latest_sinks: dict[str, float] | None = None
        _keep_steps(folder.metrics, last=first_step)
        _keep_steps(self.scalars, last=first_step - 1)
        self.tracker = Tracker(config, folder.path)
        self.started = time.monotonic()
        self.first_step = first_step

    def say(self, text: str) -> None:
        """One line for the person who watches."""
        print(text, flush=True)

    def log_step(self, metrics: dict) -> None:
        """One logged step: metrics.jsonl, wandb and the console line with its ETA."""
        _append(self.folder.metrics, metrics)
        self.tracker.log(metrics, metrics["step"])
        self.say(self._console_line(metrics))

    def log_sinks(self, report: SinkReport) -> None:
        """One sink report: its npz (the null's own at step 0), one line of scalars, wandb."""
        step = report.meta["step"]
        report.save(self.folder.sink_stats / f"step_{step:08d}.npz")
        if step == 0:
            report.save(self.folder.sink_stats / "null.npz")
        self.latest_sinks = scalars(report)
        _append(self.scalars, {"step": step} | self.latest_sinks)
        self.tracker.log({f"sink_stats/{name}": value for name, value in self.latest_sinks.items()}, step)

    def close(self) -> None:
        self.tracker.finish()

    def _console_line(self, metrics: dict) -> str:
        step, total = metrics["step"], self.config.training.train_iters
        parts = [f"step {step:>{len(str(total))}}/{total}", f"loss {metrics['loss']:.4f}"]
        if "valid_loss" in metrics:
            parts.append(f"valid {metrics['valid_loss']:.4f}")
        if metrics["grad_norm"] is not None:
            parts.append(f"grad {metrics['grad_norm']:.2f}")
        parts += [f"lr {metrics['lr']:.2e}", f"{metrics['tokens_per_second']:,.0f} tok/s"]
        if metrics["mfu"] is not None:
            parts.append(f"MFU {metrics['mfu']:.1%}")
        if self.latest_sinks is not None:
            sinks = self.latest_sinks
            parts.append(
                f"sink {sinks['attention_sink_mean']:.3f} R_GS {sinks['gradient_sink_ratio_median']:.1f} "
                f"|x0| {sinks['hidden_norm_t0_mean']:.1f} ({sinks['hidden_t0_over_early_mean']:.1f}x)"
            )
        done = step - self.first_step
        remaining = (time.monotonic() - self.started) / done * (total - step) if done else math.nan
        return "  ".join([*parts, f"ETA {_clock(remaining)}"])


def _append(path: Path, record: dict) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _keep_steps(path: Path, last: int) -> None:
    """Drop lines of later steps, and a torn last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= last:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue
    write_text(path, "".join(kept))


def _clock(seconds: float) -> str:
    if math.isnan(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
