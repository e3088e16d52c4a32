"""The figures that decide, as docs/reproduction.md registered them before the arms were run."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megasink.errors import UserError

GATE_SINKS = 0.3
"""AS mean of the baseline from which on there are sinks to keep."""
GATE_ACTIVATIONS = 3.0
"""t0/early of the baseline over its null from which on there are massive activations to shrink."""

GATE_GRADIENTS = 1.5
"""Median R_GS against 1..15 of the baseline over its null from which on there is a gradient sink to lose."""

_GRADIENT_SINK = "gradient_sink_ratio_early"


@dataclass(frozen=True)
class ArmFigures:
    """One arm at the last step on held-out text, from tools/analyze_ckpt.py; `null_`: its untrained weights."""

    arm: str
    valid_loss: float
    attention_sink: float
    sink_heads: float
    hidden_t0: float
    t0_over_early: float
    null_t0_over_early: float
    top1_over_median: float
    gradient_sink: float
    null_gradient_sink: float

    @property
    def gradient_sink_over_null(self) -> float:
        return self.gradient_sink / self.null_gradient_sink


@dataclass(frozen=True)
class Criterion:
    """One registered question and its answer in this run; None where the gate leaves it open."""

    question: str
    found: str
    holds: bool | None


def read_figures(report: Path) -> list[ArmFigures]:
    """The arms of a report folder of tools/analyze_ckpt.py, or of its kept copy, first setting."""
    setting = json.loads((report / "metrics.json").read_text(encoding="utf-8"))["settings"][0]
    figures = []
    for model in setting["models"]:
        intervals = {row.get("key"): row for row in setting["intervals"][model["label"]]}
        if _GRADIENT_SINK not in intervals:
            raise UserError(
                f"{report}: its intervals have no {_GRADIENT_SINK}, so an earlier megasink made it, or it was made "
                "without gradients; remove the folder, then the same command makes it again"
            )
        figures.append(_figures(model, intervals[_GRADIENT_SINK]))
    return figures


def _figures(model: dict, gradient_sink: dict) -> ArmFigures:
    trained, untrained = (_arrays(model[weights]) for weights in ("trained", "untrained"))
    return ArmFigures(
        arm=model["label"],
        valid_loss=model["trained"]["loss"],
        attention_sink=float(trained["attention_sink"].mean()),
        sink_heads=float((trained["attention_sink"] > GATE_SINKS).mean()),
        hidden_t0=float(trained["hidden_norm"][:, 0].mean()),
        t0_over_early=float(trained["hidden_t0_over_early"].mean()),
        null_t0_over_early=float(untrained["hidden_t0_over_early"].mean()),
        top1_over_median=float(trained["hidden_top1_over_median"].mean()),
        gradient_sink=gradient_sink["trained"]["value"],
        null_gradient_sink=gradient_sink["untrained"]["value"],
    )


def _arrays(measurement: dict) -> dict[str, np.ndarray]:
    return {name: np.array(array, dtype=np.float64) for name, array in measurement["arrays"].items()}


def judge(baseline: ArmFigures, others: list[ArmFigures]) -> list[Criterion]:
    """The gate on the baseline, then the paper's direction for each other arm."""
    over_null = baseline.t0_over_early / baseline.null_t0_over_early
    sinks = baseline.attention_sink >= GATE_SINKS
    massive = over_null >= GATE_ACTIVATIONS
    gradients = baseline.gradient_sink_over_null >= GATE_GRADIENTS
    criteria = [
        Criterion(f"gate: {baseline.arm} has sinks, AS mean >= {GATE_SINKS}", f"{baseline.attention_sink:.3f}", sinks),
        Criterion(
            f"gate: {baseline.arm} has massive activations, t0/early >= {GATE_ACTIVATIONS:g} x its null",
            f"{over_null:.2f} x",
            massive,
        ),
        Criterion(
            f"gate: {baseline.arm} has a gradient sink, R_GS against 1..15 >= {GATE_GRADIENTS} x its null",
            f"{baseline.gradient_sink_over_null:.2f} x",
            gradients,
        ),
    ]
    for arm in others:
        kept, shrunk = arm.attention_sink / baseline.attention_sink, arm.hidden_t0 / baseline.hidden_t0
        early = arm.t0_over_early / baseline.t0_over_early
        nearer = abs(np.log(arm.gradient_sink_over_null)) < abs(np.log(baseline.gradient_sink_over_null))
        behind = arm.valid_loss - baseline.valid_loss
        found = f"{arm.gradient_sink_over_null:.2f} against {baseline.gradient_sink_over_null:.2f}"
        answers = [
            ("sinks stay, AS mean >= 0.5 x", f"{kept:.2f} x", kept >= 0.5 if sinks else None),
            ("norm of x_out at 0 <= 0.5 x", f"{shrunk:.2f} x", shrunk <= 0.5 if massive else None),
            ("t0/early <= 0.5 x", f"{early:.2f} x", early <= 0.5 if massive else None),
            ("R_GS against 1..15 over its null nearer to 1", found, bool(nearer) if gradients else None),
            ("valid loss at most 0.02 above", f"{behind:+.4f}", behind <= 0.02),
        ]
        criteria += [Criterion(f"{arm.arm}: {question}", *answer) for question, *answer in answers]
    return criteria


def verdict_text(figures: list[ArmFigures]) -> str:
    """Markdown: the table of figures, then each registered question with its answer."""
    names = "valid loss", "AS mean", "heads > 0.3", "x_out t0", "t0/early (null)", "top-1/median", "R_GS early (null)"
    lines = [f"| | {' | '.join(names)} |", "|---" + "|---:" * len(names) + "|"]
    for arm in figures:
        cells = (
            f"{arm.valid_loss:.4f}",
            f"{arm.attention_sink:.3f}",
            f"{arm.sink_heads:.0%}",
            f"{arm.hidden_t0:.1f}",
            f"{arm.t0_over_early:.2f} ({arm.null_t0_over_early:.2f})",
            f"{arm.top1_over_median:.1f}",
            f"{arm.gradient_sink:.2f} ({arm.null_gradient_sink:.2f})",
        )
        lines.append(f"| {arm.arm} | {' | '.join(cells)} |")
    lines += ["", "| registered question | found | |", "|---|---:|---|"]
    for criterion in judge(figures[0], figures[1:]):
        answer = {True: "yes", False: "no", None: "cannot be said: the gate is closed"}[criterion.holds]
        lines.append(f"| {criterion.question} | {criterion.found} | {answer} |")
    return "\n".join(lines) + "\n"
