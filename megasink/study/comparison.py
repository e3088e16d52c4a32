"""Arms against the baseline: series over steps, means over seeds, the last figures and their differences."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from megasink.study.run_folder_reader import Series, read_series
from megasink.study.study_file import Study

RunSeries = dict[str, Series]
"""Everything one run recorded, by name."""


@dataclass(frozen=True)
class Figure:
    """One quantity that arms are compared by."""

    title: str
    unit: str
    series: Callable[[RunSeries], Series]
    null: str | None = None
    """Name of what untrained weights show, to be drawn beside it."""
    is_loss: bool = False

    def shown(self, value: float, sign: str = "") -> str:
        """`value` as the tables show it: losses with four decimals, others with three significant digits."""
        if self.is_loss:
            return f"{value:{sign}.4f}"
        return f"{value:{sign}#.3g}" if abs(value) < 100 else f"{value:{sign},.0f}"


def _named(name: str) -> Callable[[RunSeries], Series]:
    return lambda run: run.get(name, {})


def _over_null(name: str) -> Callable[[RunSeries], Series]:
    def series(run: RunSeries) -> Series:
        null = run.get(f"{name}_null", {})
        return {step: value / null[step] for step, value in run.get(name, {}).items() if null.get(step)}

    return series


def smoothed_loss(run: RunSeries) -> Series:
    """Running mean of the training loss over a fiftieth of what is logged; a point stands at its window's end."""
    loss = run.get("loss", {})
    width = max(1, len(loss) // 50)
    values = np.convolve(list(loss.values()), np.ones(width) / width, mode="valid") if loss else []
    return dict(zip(list(loss)[width - 1 :], map(float, values), strict=True))


TRAINING_LOSS = Figure("Training loss", "nats per token", smoothed_loss, is_loss=True)
FIGURES = (
    Figure("Validation loss", "nats per token", _named("valid_loss"), is_loss=True),
    Figure("AS, mean", "share of attention on token 0", _named("attention_sink_mean"), "attention_sink_mean_null"),
    Figure("Heads with AS > 0.3", "share of heads", _named("attention_sink_head_share")),
    Figure(
        "|x_out| at token 0", "L2 norm, mean over layers", _named("hidden_norm_t0_mean"), "hidden_norm_t0_mean_null"
    ),
    Figure(
        "t0 / early", "|x_out| at 0 over 1..15", _named("hidden_t0_over_early_mean"), "hidden_t0_over_early_mean_null"
    ),
    Figure("R_GS(0) against 1..15, over its null", "ratio", _over_null("gradient_sink_ratio_early_median")),
    Figure("R_GS(0), over its null", "ratio", _over_null("gradient_sink_ratio_median")),
)


@dataclass(frozen=True)
class Cell:
    """A figure's last value, mean over seeds, and how far it lies from the baseline's; None where nothing is known."""

    value: float | None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    """Smallest and largest difference of a seed, where there are several."""


@dataclass(frozen=True)
class Row:
    """One arm's last figures, in the order of TRAINING_LOSS, FIGURES."""

    arm: str
    seeds: int
    """Seeds that have recorded anything."""
    step: int
    """The last step that all of them reached."""
    cells: list[Cell]


class StudySeries:
    """What all runs of a study recorded so far."""

    def __init__(self, study: Study):
        self.study = study
        self.runs = {
            arm: {run.seed: read_series(run.folder) for run in study.runs if run.arm == arm} for arm in study.arms
        }

    def by_seed(self, arm: str, figure: Figure) -> dict[int, Series]:
        """Seed -> series, seeds without a value left out."""
        found = {seed: figure.series(run) for seed, run in self.runs[arm].items()}
        return {seed: series for seed, series in found.items() if series}

    def differences(self, arm: str, figure: Figure) -> dict[int, Series]:
        """Seed -> arm minus baseline of the same seed (the same data) at the steps that both have."""
        baseline = self.by_seed(self.study.baseline, figure)
        return {
            seed: minus
            for seed, series in self.by_seed(arm, figure).items()
            if seed in baseline and (minus := _minus(series, baseline[seed]))
        }

    def null(self, arm: str, figure: Figure) -> float | None:
        """Mean over seeds of what untrained weights show."""
        known = [list(run[figure.null].values())[-1] for run in self.runs[arm].values() if figure.null in run]
        return float(np.mean(known)) if known else None

    def rows(self) -> list[Row]:
        """The table of last figures; arms that recorded nothing yet are left out."""
        rows = []
        for arm in self.study.arms:
            losses = self.by_seed(arm, TRAINING_LOSS)
            if losses:
                cells = [self._cell(arm, figure) for figure in (TRAINING_LOSS, *FIGURES)]
                rows.append(Row(arm, len(losses), min(max(series) for series in losses.values()), cells))
        return rows

    def _cell(self, arm: str, figure: Figure) -> Cell:
        last = [series[max(series)] for series in self.by_seed(arm, figure).values()]
        value = float(np.mean(last)) if last else None
        if arm == self.study.baseline:
            return Cell(value)
        minus = [series[max(series)] for series in self.differences(arm, figure).values()]
        if not minus:
            return Cell(value)
        return Cell(value, float(np.mean(minus)), min(minus), max(minus))


def mean_over_seeds(by_seed: dict[int, Series]) -> Series:
    """At the steps that every seed has, so that it never jumps where a seed begins or ends."""
    if not by_seed:
        return {}
    steps = sorted(set.intersection(*(set(series) for series in by_seed.values())))
    return {step: float(np.mean([series[step] for series in by_seed.values()])) for step in steps}


def _minus(series: Series, other: Series) -> Series:
    return {step: value - other[step] for step, value in series.items() if step in other}
