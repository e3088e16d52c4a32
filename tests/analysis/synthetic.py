"""Made-up sink reports: the shape of real ones, with numbers that a test chooses."""

import numpy as np

from megasink.analysis.bootstrap import compare, intervals
from megasink.analysis.measured import MeasuredModel, Measurement
from megasink.analysis.pictures import draw_pictures
from megasink.analysis.section import Section
from megasink.analysis.tokens import TokenSequences
from megasink.stats.report import SinkReport


def position_bins(seq_length: int) -> np.ndarray:
    """Bounds [P + 1]: exact up to position 15, doubling after."""
    bounds = list(range(min(16, seq_length)))
    step = 16
    while step < seq_length:
        bounds.append(step)
        step *= 2
    return np.array([*bounds, seq_length])


def report(
    step=0, layers=6, heads=4, kv_heads=2, sequences=8, seq_length=256, sink=0.0, seed=0, theta=None
) -> SinkReport:
    """A report whose AS is about `sink` and whose token 0 grows with it."""
    rng = np.random.default_rng(seed)
    bounds = position_bins(seq_length)
    bins = len(bounds) - 1
    depth = np.linspace(0, 1, layers)
    bump = np.sin(np.pi * depth)[:, None]
    decay = 1 / np.sqrt(bounds[:-1] + 1.0)
    first = np.zeros(bins)
    first[0] = 1

    def noise(*shape):
        return np.exp(0.1 * rng.standard_normal(shape))

    hidden = (10 + 2000 * sink * bump * first) * noise(layers, bins)
    arrays = {
        "position_start": bounds[:-1],
        "position_end": bounds[1:],
        "value_grad_norm": 1e-5 * (decay + 3 * sink * first) * noise(layers, kv_heads, bins),
        "value_grad_norm_all": 2e-5 * (decay + 3 * sink * first) * noise(layers, bins),
        "value_norm": 4 * (1 - 0.9 * sink * first) * noise(layers, kv_heads, bins),
        "hidden_norm": hidden,
        "mlp_out_norm": (2 + 300 * sink * bump * first) * noise(layers, bins),
        "hidden_t0_over_early": hidden[:, 0] / hidden[:, 1:16].mean(axis=1),
        "attention_sink": np.clip((0.02 + sink * bump) * noise(layers, heads), 0, 1),
        "gradient_sink_ratio": (14 + 20 * sink * bump) * noise(layers, sequences) ** 3,
        "gradient_sink_ratio_early": (2.4 + 4 * sink * bump) * noise(layers, sequences) ** 3,
    }
    if theta is not None:
        arrays["theta"] = theta * rng.standard_normal((layers, kv_heads))
        arrays["v_scale_c"] = np.exp(arrays["theta"])
    meta = {
        "schema": "megasink.sink_stats/1",
        "step": step,
        "sequences": sequences,
        "tokens": sequences * seq_length,
        "seq_length": seq_length,
        "num_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 64,
        "v_scale": "off" if theta is None else "on",
    }
    return SinkReport(meta, arrays)


def measurement(made: SinkReport, loss: float) -> Measurement:
    """Per-sequence figures that scatter around the report's."""
    sequences = made.meta["sequences"]
    scatter = np.exp(0.05 * np.random.default_rng(7).standard_normal((sequences, 1)))
    per_sequence = {
        "loss": loss * scatter[:, 0],
        "attention_sink": made["attention_sink"].mean(axis=1) * scatter,
        "hidden_t0": made["hidden_norm"][:, 0] * scatter,
        "hidden_t0_over_early": made["hidden_t0_over_early"] * scatter,
        "mlp_t0": made["mlp_out_norm"][:, 0] * scatter,
        "gradient_sink_ratio": made["gradient_sink_ratio"].T,
        "gradient_sink_ratio_early": made["gradient_sink_ratio_early"].T,
        "tokens": np.full(sequences, made.meta["seq_length"], float),
    }
    return Measurement(made, per_sequence, float(per_sequence["loss"].mean()))


def models(**shape) -> list[MeasuredModel]:
    """A baseline with sinks and a V-scale model with fewer, each with its null and a short trajectory."""
    pair = []
    for label, sink, theta in (("baseline", 0.6, None), ("V-scale", 0.25, 0.4)):
        null = report(seed=1, theta=None if theta is None else 0.0, **shape)
        middle = report(step=500, seed=2, sink=0.5 * sink, theta=theta, **shape)
        trained = report(step=1000, seed=3, sink=sink, theta=theta, **shape)
        pair.append(
            MeasuredModel(
                label,
                measurement(trained, 3.1 if theta is None else 3.05),
                measurement(null, 10.4),
                null_source="checkpoints/step_00000000",
                source=f"runs/{label}",
                details={"step": "1,000", "parameters": "1,234,567"},
                trajectory=[null, middle, trained],
            )
        )
    return pair


def sections(made: list[MeasuredModel], seq_lengths: tuple[int, ...] = (256,)) -> list[Section]:
    """Two figures of `made`, a picture and a heat map, once per length."""
    return [
        Section(
            TokenSequences(np.zeros((8, length + 1), np.int64), "made up"),
            made,
            draw_pictures(made, ["6", "13"]),
            [compare(*made)],
            [intervals(model) for model in made],
        )
        for length in seq_lengths
    ]
