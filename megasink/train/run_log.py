"""What a run says: metrics.jsonl, sink reports, wandb, and readable lines on the console. Lives on rank 0."""

import math
import time
from concurrent.futures import Future

from megasink.config import RunConfig
from megasink.stats.alerts import GrowthWatch
from megasink.stats.report import SinkReport
from megasink.stats.scalars import scalars, with_null
from megasink.train.background import Background
from megasink.train.record_file import RecordFile
from megasink.train.run_folder import RunFolder
from megasink.train.sink_charts import draw_charts, layer_scalars
from megasink.train.tracker import Tracker


class RunLog:
    """Appends to the run folder; lines of steps after `first_step` left by a killed run are dropped first.

    `growth_warns_at`: GrowthWatch's, of the checkpoint that is resumed.
    """

    def __init__(self, folder: RunFolder, config: RunConfig, first_step: int, growth_warns_at: dict[str, float]):
        self.folder = folder
        self.config = config
        self.first_step = first_step
        self.latest_sinks: dict[str, float] | None = None
        self.null = self._stored_null()
        self.growth = GrowthWatch(growth_warns_at)
        self.background = Background()
        self.charts: Future | None = None
        self.metrics = RecordFile(folder.metrics, first_step, folder.say)
        self.scalars = RecordFile(folder.sink_stats / "scalars.jsonl", first_step - 1, folder.say)
        self.events = RecordFile(folder.events, first_step, folder.say)
        self.tracker = Tracker(config, folder.path)
        self.started = time.monotonic()

    def say(self, text: str) -> None:
        """One line for the person who watches."""
        self.folder.say(text)

    def log_event(self, event: dict, text: str | None = None) -> None:
        """Something that is not a step's metrics: one object in events.jsonl, and a line if there is one."""
        self.events.append(event)
        if text is not None:
            self.say(f"megasink: {text}")

    def log_step(self, metrics: dict) -> None:
        """One logged step: metrics.jsonl, wandb and the console line with its ETA."""
        self.metrics.append(metrics)
        self.tracker.log(metrics, metrics["step"])
        self.say(self._console_line(metrics))

    def log_sinks(self, report: SinkReport) -> None:
        """One sink report: its npz, one line of scalars beside their nulls, wandb, and a warning where norms grow.

        That of step 0 is the null, unless the run started from given weights.
        """
        step = report.meta["step"]
        self.background.submit(self._save_report, report, f"step_{step:08d}.npz")
        if step == 0 and self.config.checkpoint.load is None:
            self.background.submit(self._save_report, report, "null.npz")
            self.null = report
        self.latest_sinks, null = scalars(report), self._null_scalars()
        line = with_null(self.latest_sinks, null)
        self.scalars.append({"step": step} | line)
        self.tracker.log({f"sink_stats/{name}": value for name, value in line.items()}, step)
        self.tracker.log(layer_scalars(report), step)
        self._log_charts(report)
        for warning in self.growth.check(self.latest_sinks, null):
            self.say(f"warning: step {step}: {warning}")
            self.tracker.alert("Massive activations grow", f"step {step}: {warning}")

    def _save_report(self, report: SinkReport, name: str) -> None:
        try:
            report.save(self.folder.sink_stats / name)
        except OSError as error:
            self.say(f"megasink: sink_stats/{name} not saved ({error.strerror}); the run goes on")

    def _stored_null(self) -> SinkReport | None:
        """The null of the run that is resumed."""
        path = self.folder.sink_stats / "null.npz"
        return SinkReport.load(path) if self.first_step > 0 and path.exists() else None

    def _null_scalars(self) -> dict[str, float]:
        return {} if self.null is None else scalars(self.null)

    def _log_charts(self, report: SinkReport) -> None:
        """Have a full report's charts drawn; they reach wandb with a later report, wandb knowing no way back."""
        step = report.meta["step"]
        if self.charts is not None and self.charts.done():
            self.tracker.log_images(self.charts.result(), step)
            self.charts = None
        if self.tracker.run is not None and self.charts is None and report.meta["level"] == "full":
            self.charts = self.background.submit(draw_charts, report, self.null)

    def close(self) -> None:
        """Wait until all is written."""
        self.background.close()
        if self.charts is not None:
            self.tracker.log_images(self.charts.result(), step=None)
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
            parts.append(self._sink_part())
        done = step - self.first_step
        remaining = (time.monotonic() - self.started) / done * (total - step) if done else math.nan
        return "  ".join([*parts, f"ETA {_clock(remaining)}"])

    def _sink_part(self) -> str:
        """Sinks of the latest report, each ratio beside its null."""
        sinks, null = self.latest_sinks, self._null_scalars()

        def figure(name: str, decimals: int) -> str:
            shown = f"{sinks[name]:.{decimals}f}"
            return shown if name not in null else f"{shown} (null {null[name]:.{decimals}f})"

        return (
            f"sink {figure('attention_sink_mean', 3)}  R_GS {figure('gradient_sink_ratio_early_median', 1)}  "
            f"|x0| {sinks['hidden_norm_t0_mean']:.1f}, {figure('hidden_t0_over_early_mean', 1)}x early"
        )


def _clock(seconds: float) -> str:
    if math.isnan(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
