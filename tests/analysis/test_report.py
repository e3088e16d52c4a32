"""Figures and report from made-up numbers: what is drawn is what was measured, and the page escapes what users name."""

import json
import os

import numpy as np
import pytest

from megasink.analysis.bootstrap import compare
from megasink.analysis.figures import FIGURES, draw_figures, figure_names
from megasink.analysis.pictures import draw_pictures
from megasink.analysis.report import console_table, format_number, write_report
from megasink.analysis.summary import attention_sink_null, per_layer, table_rows
from tests.analysis import synthetic


def drawn(models, name):
    (drawing,) = draw_figures(models, [name])
    return drawing


def lines(axes) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_ydata() for line in axes.get_lines()}


def test_gradient_sink_figure_shows_medians_beside_their_nulls():
    models = synthetic.models()
    left, right = drawn(models, "6").figure.axes
    for axes, name in ((left, "gradient_sink_ratio"), (right, "gradient_sink_ratio_early")):
        for model in models:
            shown = lines(axes)
            np.testing.assert_array_equal(shown[model.label], np.median(model.report[name], axis=1))
            np.testing.assert_array_equal(shown[f"{model.label}, untrained"], np.median(model.null[name], axis=1))


def test_sinks_and_activations_figure():
    models = synthetic.models()
    sink, hidden, mlp = drawn(models, "7").figure.axes
    report = models[0].report
    np.testing.assert_array_equal(lines(sink)["baseline"], report["attention_sink"].mean(axis=1))
    np.testing.assert_array_equal(lines(hidden)["baseline"], report["hidden_norm"][:, 0])
    np.testing.assert_array_equal(lines(mlp)["baseline, untrained"], models[0].null["mlp_out_norm"][:, 0])


def test_theta_is_drawn_only_where_it_was_learned():
    models = synthetic.models()
    (image,) = drawn(models, "13").figure.axes[0].get_images()
    np.testing.assert_array_equal(image.get_array(), models[1].report["theta"])
    assert abs(image.norm.vmin) == image.norm.vmax  # white is 0
    assert draw_figures(models[:1], ["13"]) == []


def test_models_of_different_depth_share_the_figures():
    models = [synthetic.models(layers=4)[0], synthetic.models(layers=7, heads=2, kv_heads=1)[1]]
    for drawing in draw_figures(models, list(FIGURES)):
        drawing.figure.canvas.draw()


def test_gradients_only_leaves_the_other_figures_out():
    models = synthetic.models()
    every, gradients = (
        {drawing.number for drawing in draw_figures(models, figure_names(None, metrics))} for metrics in ("all", "grad")
    )
    assert gradients == {"6", "14", "1", "steps"} and every - gradients == {"7", "heads", "12", "13"}


def test_several_processes_draw_the_same_pictures():
    """In the order asked for, byte for byte."""
    models, names = synthetic.models(), ["7", "6", "13"]
    here, elsewhere = draw_pictures(models, names), draw_pictures(models, names, workers=2)
    assert [picture.drawing.number for picture in elsewhere] == names
    for one, other in zip(here, elsewhere, strict=True):
        assert (one.png, one.svg, one.narrow) == (other.png, other.svg, other.narrow)
        assert one.drawing.reading == other.drawing.reading


class _EndsWhoReadsIt(str):
    def __reduce__(self):
        return os._exit, (1,)


def test_a_worker_that_is_killed_loses_no_picture():
    models = synthetic.models()
    models[0].label = _EndsWhoReadsIt("baseline")
    assert [picture.drawing.number for picture in draw_pictures(models, ["7", "6"], workers=2)] == ["7", "6"]


def test_table_has_means_and_maxima_over_layers():
    models = synthetic.models()
    row, null_row = table_rows(models)[:2]
    hidden = models[0].report["hidden_norm"][:, 0]
    assert row.hidden_t0 == (hidden.mean(), hidden.max())
    assert row.gradient_sink_ratio[0] == np.median(models[0].report["gradient_sink_ratio"])
    assert (row.kind, null_row.kind) == ("measured", "null")
    assert "0.3B on C4" in console_table(models)


def test_value_norm_of_the_others_weighs_positions_not_bins():
    report = synthetic.report(seq_length=256)
    report.arrays["value_norm"] = np.broadcast_to(report["position_start"].astype(float), report["value_norm"].shape)
    bins = zip(report["position_start"], report["position_end"], strict=True)
    every_position = np.concatenate([np.full(end - start, start) for start, end in bins])
    np.testing.assert_allclose(per_layer(report)["value_norm_others"], every_position[1:].mean())


def test_uniform_attention_null():
    assert attention_sink_null(4) == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)


def test_labels_are_escaped(tmp_path):
    models = synthetic.models()
    models[0].label = "<script>alert(1)</script>"
    page = write_report(tmp_path, synthetic.sections(models), {"command": "a & b"})
    text = page.read_text()
    assert "<script>alert" not in text and "a &amp; b" in text


def test_json_holds_no_nan(tmp_path):
    models = synthetic.models()
    models[0].report["hidden_norm"][0, 0] = np.nan
    write_report(tmp_path, synthetic.sections(models), {})
    stored = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert stored["settings"][0]["models"][0]["trained"]["arrays"]["hidden_norm"][0][0] is None


def test_numbers_are_short():
    assert [format_number(value) for value in (1916.4, 0.61724, 11.119)] == ["1,916", "0.6172", "11.12"]


def test_paired_difference_is_sharper_than_its_parts():
    """Both models see the same sequences: what the text does to both cancels."""
    models = synthetic.models(sequences=64)
    first = models[0].trained.per_sequence
    models[1].trained.per_sequence = {name: values * 1.01 for name, values in first.items()}
    row = compare(*models)[0]
    assert row.difference.value == pytest.approx(0.01 * row.first.value)
    assert row.difference.low > 0
    assert row.difference.high - row.difference.low < 0.1 * (row.first.high - row.first.low)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        models = synthetic.models(sequences=40, layers=1)
        for model in models:
            model.trained.per_sequence["loss"] = rng.normal(3.0, 0.5, 40)
        interval = compare(*models)[0].first
        hits += interval.low < 3.0 < interval.high
    assert 86 <= hits <= 99


def test_one_sequence_has_no_interval():
    models = synthetic.models(sequences=1)
    for row in compare(*models):
        assert np.isnan(row.difference.low) and np.isnan(row.difference.high) and not row.difference.clear
        assert row.difference.value == pytest.approx(row.second.value - row.first.value)


def test_sections_keep_their_pictures_apart(tmp_path):
    page = write_report(tmp_path, synthetic.sections(synthetic.models(), (64, 256)), {}).read_text()
    for length in (64, 256):
        assert f"Sequences of {length} tokens" in page
        assert (tmp_path / "figures" / f"length_{length}" / "figure06_gradient_sinks.png").is_file()
