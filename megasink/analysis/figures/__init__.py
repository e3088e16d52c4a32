"""One module per figure; each has `draw(models)`, which returns a Drawing, or None where it does not apply."""

from typing import Literal

from megasink.analysis import style
from megasink.analysis.figures import (
    counterfactual,
    gradient_paths,
    gradient_sinks,
    massive_activations,
    qkv_gradients,
    regulators,
    sink_heads,
    sink_positions,
    sinks_and_activations,
    theta,
    trajectories,
    value_gradients,
    value_norms,
)
from megasink.analysis.figures.drawing import Drawing
from megasink.analysis.measured import MeasuredModel
from megasink.errors import UserError

FIGURES = {
    "7": sinks_and_activations.draw,
    "heads": sink_heads.draw,
    "positions": sink_positions.draw,
    "massive": massive_activations.draw,
    "6": gradient_sinks.draw,
    "14": gradient_sinks.draw_learned,
    "1": value_gradients.draw,
    "2": qkv_gradients.draw,
    "8": qkv_gradients.draw_by_step,
    "9": qkv_gradients.draw_by_layer,
    "paths": gradient_paths.draw,
    "values": counterfactual.draw_heads,
    "counterfactual": counterfactual.draw,
    "3": regulators.draw_attention,
    "10": regulators.draw_by_depth,
    "11": regulators.draw_mlp,
    "12": value_norms.draw,
    "13": theta.draw,
    "steps": trajectories.draw,
}
"""By the paper's number, in the order of the report; names without a number are ours."""
_OF_THE_FORWARD_PASS = ("7", "heads", "positions", "massive", "12", "13")


def check_figure_names(wanted: list[str]) -> None:
    """Raise UserError where `wanted` names a figure that is not drawn here."""
    for name in wanted:
        if name not in FIGURES:
            raise UserError(f"--figures {name}: there is no such figure; choose from {','.join(FIGURES)}")


def figure_names(wanted: list[str] | None, metrics: Literal["all", "forward", "grad"]) -> list[str]:
    """Those of `wanted`, in the order of the report.

    Without `wanted` all, but for metrics `grad` those that need gradients alone; for `forward` they apply where they
    need none.
    """
    if wanted is None:
        wanted = [name for name in FIGURES if metrics != "grad" or name not in _OF_THE_FORWARD_PASS]
    return [name for name in FIGURES if name in wanted]


def draw_figures(models: list[MeasuredModel], names: list[str]) -> list[Drawing]:
    """The figures named that apply to `models`, in this order."""
    with style.figure_style():
        drawings = [FIGURES[name](models) for name in names]
    return [drawing for drawing in drawings if drawing is not None]


__all__ = ["FIGURES", "Drawing", "check_figure_names", "draw_figures", "figure_names"]
