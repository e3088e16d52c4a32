"""The training loop: steps, statistics, evaluation, checkpoints, and how a run ends."""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from megasink.checkpoint.saver import CheckpointSaver
from megasink.config import RunConfig
from megasink.errors import UserError
from megasink.parallel.late_copy import LateCopy
from megasink.parallel.layout import ParallelLayout
from megasink.stats.measures import EXACT_POSITIONS
from megasink.stats.recorder import SinkRecorder
from megasink.stats.report import SinkReport
from megasink.train import exit_codes
from megasink.train.agree import agree
from megasink.train.bad_numbers import BadNumbers
from megasink.train.batches import Batches
from megasink.train.diagnosis import diagnose
from megasink.train.engine import Batch, TrainEngine
from megasink.train.flops import model_flops_utilisation
from megasink.train.late import Instant, LateActions, LateMaximum
from megasink.train.optimizer import learning_rate
from megasink.train.profiler import StepProfiler
from megasink.train.replicas import differing_parameter
from megasink.train.run_folder import RunFolder
from megasink.train.run_log import RunLog
from megasink.train.stop import StopRequest
from megasink.train.straggler import StragglerReport
from megasink.train.watchdog import Watchdog


@dataclass
class Progress:
    """How far a run has come; what a checkpoint stores beside weights and optimizer."""

    step: int = 0
    consumed_samples: int = 0
    consumed_tokens: int = 0
    skipped_steps: int = 0
    growth_warns_at: dict[str, float] = field(default_factory=dict)
    """GrowthWatch.warns_at, as rank 0 has it."""


@dataclass
class Run:
    """The parts a training run is made of. `log` is None except on rank 0, `valid` None where nothing is evaluated."""

    config: RunConfig
    layout: ParallelLayout
    device: torch.device
    folder: RunFolder
    engine: TrainEngine
    recorder: SinkRecorder
    train: Batches
    valid: Batches | None
    saver: CheckpointSaver
    watchdog: Watchdog
    stop: StopRequest
    log: RunLog | None
    progress: Progress


def train(run: Run) -> int:
    """From run.progress to train_iters, or until a stop is agreed; ends with a checkpoint. Returns the exit code."""
    config, progress = run.config, run.progress
    training = config.training
    run.stop.heed_interrupt()
    across_ranks = LateMaximum(run.device)
    numbers = BadNumbers(
        training.max_skipped_steps, training.global_batch_size, progress.skipped_steps, functools.partial(_report, run)
    )
    stopped = diverged = False
    saved_at = first = progress.step
    straggler = StragglerReport(run.device, functools.partial(_report, run))
    meter = _Meter(run)
    late = LateActions()
    profiler = _profiler(run)

    while progress.step < training.train_iters:
        maxima = across_ranks.exchange([run.stop.wanted(), -run.saver.finished])
        if maxima is not None:
            stopped = bool(maxima[0])
            run.saver.settle(finished_everywhere=-int(maxima[1]))
        diverged = numbers.check(before=progress.step)
        if stopped or diverged:
            break
        if profiler.steps > 0:
            with meter.paused():
                profiler.before_step(progress.step)
        run.watchdog.beat(progress.step, "first step" if progress.step == first else "training")
        lr = learning_rate(progress.step, training.train_iters, config.optimizer)
        began = time.monotonic()
        batch = run.train.at(progress.consumed_samples)
        straggler.data_wait_s += time.monotonic() - began
        loss, report = _train_step(run, batch, lr)
        late.settle()
        if report is not None and run.log is not None:
            late.put(functools.partial(_log_sinks, run.log, report))
        progress.step += 1
        progress.consumed_samples += training.global_batch_size
        progress.consumed_tokens += training.global_batch_size * config.model.seq_length
        numbers.follow(progress.step, loss, _gradient_norm(run))
        meter.steps += 1
        if _due(progress.step, config.parallel.check_replicas):
            with meter.paused():
                agree(lambda: _check_replicas(run))

        last = progress.step == training.train_iters
        evaluates = run.valid is not None and (last or _due(progress.step, training.eval_interval))
        if last or evaluates or _due(progress.step, config.logging.log_interval):
            straggler.begin(progress.step, meter.steps)
            late.put(functools.partial(_log_step, run, meter, meter.begin(loss, lr), straggler, evaluates))
        if last or evaluates:
            late.settle()
        if last or _due(progress.step, config.checkpoint.save_interval):
            diverged = numbers.check(before=progress.step + 1)
            late.settle()
            with meter.paused():
                save(run, numbers.skipped)
            saved_at = progress.step

    profiler.close(progress.step)
    late.settle()
    if stopped and run.log is not None:
        run.log.say(f"megasink: {run.stop.reason or 'another rank was asked to stop'}; saving step {progress.step}")
    diverged = numbers.check(before=progress.step + 1)
    if saved_at != progress.step:
        save(run, numbers.skipped)
    run.watchdog.beat(progress.step, "saving")
    run.saver.close()
    if run.saver.last_failed:
        raise UserError(f"the checkpoint of step {progress.step} is missing; make room, then go on with --auto-resume")
    nothing_trained = progress.step == training.train_iters == numbers.skipped
    if diverged or nothing_trained:
        _explain(run, numbers.skipped if nothing_trained else numbers.in_a_row)
        return exit_codes.DIVERGED
    if progress.step == training.train_iters:
        return exit_codes.FINISHED
    if run.log is not None:
        run.log.say(
            f"Stopped after step {progress.step} ({run.stop.reason or 'another rank asked'}); saved. "
            "Go on with --auto-resume."
        )
    return exit_codes.STOPPED


def evaluate(run: Run) -> float:
    """Mean loss of the first eval_iters global batches of the validation split."""
    size = run.config.training.global_batch_size
    losses = []
    for at in range(run.config.training.eval_iters):
        run.watchdog.beat(run.progress.step, "evaluating")
        losses.append(run.engine.evaluate(run.valid.at(at * size)))
    return torch.stack(losses).mean().item()


def save(run: Run, skipped_steps: int) -> None:
    """A resumable checkpoint of the present step."""
    run.watchdog.beat(run.progress.step, "saving")
    run.progress.skipped_steps = skipped_steps
    if run.log is not None:
        run.progress.growth_warns_at = run.log.growth.warns_at
    progress = vars(run.progress)
    stream = run.train.dataset.state(run.progress.consumed_samples)
    run.saver.save(progress | {"data": stream}, run.engine.model, run.engine.engine)
    run.watchdog.beat(run.progress.step, "training")
    event = {"event": "save", "step": run.progress.step, "stall_s": run.saver.stall_s}
    _report(run, event)


def _report(run: Run, event: dict, text: str | None = None) -> None:
    if run.log is not None:
        run.log.log_event(event, text)


def _explain(run: Run, in_a_row: int) -> None:
    """Repeat the last step with statistics and say where numbers stop being finite. The checkpoint is safe by now."""
    report = None
    if run.config.model.seq_length >= EXACT_POSITIONS:  # shorter sequences have no statistics
        consumed = run.progress.consumed_samples - run.config.training.global_batch_size
        run.engine.micro_batches = None  # graphs of other statistics would hold their memory beside this step's
        run.recorder.start()
        run.engine.train_batch(run.train.at(consumed))
        report = run.recorder.report(run.progress.step, run.engine.gradient_scale)
    text = diagnose(run.engine.model, run.config.model, report)
    event = {"event": "diverged", "step": run.progress.step, "in_a_row": in_a_row, "diagnosis": text}
    _report(run, event, f"{in_a_row} steps in a row were not finite; stopped after step {run.progress.step}: {text}")


def _check_replicas(run: Run) -> None:
    difference = differing_parameter(run.engine.model, run.layout)
    if difference is not None:
        raise UserError(
            f"--check-replicas: after step {run.progress.step} parameter {difference}; a fault of hardware or "
            "software, go on with --auto-resume from the last checkpoint"
        )


def _train_step(run: Run, batch: Batch, lr: float) -> tuple[torch.Tensor, Callable[[], SinkReport] | None]:
    """One optimizer step; with statistics where they are due. They describe the weights before the step.

    Returns the loss, and what gives the report once the device is done.
    """
    step = run.progress.step
    level = run.config.sink_stats.level_at(step)
    run.engine.set_learning_rate(lr)
    if level is not None:
        run.recorder.start(level)
    loss = run.engine.train_batch(batch)
    return loss, None if level is None else run.recorder.report_late(step, run.engine.gradient_scale)


def _log_sinks(log: RunLog, report: Callable[[], SinkReport]) -> None:
    log.log_sinks(report())


def _log_step(
    run: Run, meter: "_Meter", metrics: Callable[[], dict], straggler: StragglerReport, evaluates: bool
) -> None:
    """Of a logged step; every rank."""
    record = metrics() | straggler.read()
    if evaluates:
        with meter.paused():
            record["valid_loss"] = evaluate(run)
    if run.log is not None:
        run.log.log_step(record)


def _profiler(run: Run) -> StepProfiler:
    """It has something to do on rank 0 only."""
    logging = run.config.logging
    steps, memory = (0, False) if run.log is None else (logging.profile, logging.memory_snapshot)
    folder = run.folder.path / "profile"
    return StepProfiler(folder, steps, memory, run.device, run.engine.engine.optimizer, run.folder.say)


def _gradient_norm(run: Run) -> float | torch.Tensor | None:
    """Infinity where DeepSpeed skipped the step; under ZeRO-3 it still gives the norm of the step before."""
    return math.inf if getattr(run.engine.engine.optimizer, "overflow", False) else run.engine.gradient_norm()


def _due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0


class _Meter:
    """Step time and throughput since the last reading, evaluation and saving left out."""

    def __init__(self, run: Run):
        self.run = run
        self.steps = 0
        self.since = Instant(run.device)
        self.pauses: list[tuple[Instant, Instant]] = []

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is done inside is no part of a step."""
        began = Instant(self.run.device)
        yield
        self.pauses.append((began, Instant(self.run.device)))

    def begin(self, loss: torch.Tensor, lr: float) -> Callable[[], dict]:
        """The metrics of a logged step that was just launched; what is returned waits for the device to finish it."""
        config, progress = self.run.config, self.run.progress
        steps, self.steps = self.steps, 0
        # of the device: the host may read a step's numbers long after it was done
        since, self.since = self.since, Instant(self.run.device)
        until, pauses, self.pauses = self.since, self.pauses, []
        known = {"lr": lr, "consumed_samples": progress.consumed_samples, "consumed_tokens": progress.consumed_tokens}
        step, loss = progress.step, LateCopy(loss)
        norm = _gradient_norm(self.run)
        norm = LateCopy(norm) if isinstance(norm, torch.Tensor) else norm

        def read() -> dict:
            measured = {"step": step, "loss": loss.wait().item()}  # waits, so the instants have come as well
            measured["grad_norm"] = norm.wait().item() if isinstance(norm, LateCopy) else norm
            paused_s = sum(end.seconds_since(began) for began, end in pauses)
            seconds = (until.seconds_since(since) - paused_s) / steps
            tokens_per_second = config.training.global_batch_size * config.model.seq_length / seconds
            speed = {
                "step_time_s": seconds,
                "tokens_per_second": tokens_per_second,
                "mfu": model_flops_utilisation(tokens_per_second / dist.get_world_size(), config.model),
            }
            return measured | known | speed

        return read
