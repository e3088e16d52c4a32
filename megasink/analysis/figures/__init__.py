"""One module per figure; each has `draw(models)`, which returns a Drawing, or None where it does not apply."""

from collections.abc import Collection

from megasink.analysis import style
from megasink.analysis.figures import (
    gradient_paths,
    gradient_sinks,
    massive_activations,
    qkv_gradients,
    regulators,
    sink_heads,
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
    "6": gradient_sinks.draw,
    "7": sinks_and_activations.draw,
    "heads": sink_heads.draw,
    "massive": massive_activations.draw,
    "1": value_gradients.draw,
    "2": qkv_gradients.draw,
    "paths": gradient_paths.draw,
    "3": regulators.draw_attention,
    "11": regulators.draw_mlp,
    "12": value_norms.draw,
    "13": theta.draw,
    "steps": trajectories.draw,
}
"""By the paper's number, in the order of the report; names without a number are ours."""


def check_figure_names(wanted: list[str]) -> None:
    """Raise UserError where `wanted` names a figure that is not drawn here."""
    for name in wanted:
        if name not in FIGURES:
            raise UserError(f"--figures {name}: there is no such figure; choose from {','.join(FIGURES)}")


def draw_figures(
    models: list[MeasuredModel], wanted: list[str] | None = None, leave_out: Collection[str] = ()
) -> list[Drawing]:
    """Draw the figures named in `wanted` (all by default) that apply to `models`, in the order of the report."""
    chosen = [draw for name, draw in FIGURES.items() if (wanted is None or name in wanted) and name not in leave_out]
    with style.figure_style():
        drawings = [draw(models) for draw in chosen]
    return [drawing for drawing in drawings if drawing is not None]


__all__ = ["FIGURES", "Drawing", "check_figure_names", "draw_figures"]
