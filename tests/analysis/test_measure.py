"""What analysis measures equals the naive reference, and the live report of the same batch."""

import numpy as np
import pytest
import torch

from megasink.analysis import measure as measure_module
from megasink.analysis.measure import measure
from megasink.analysis.observer import Wanted
from megasink.analysis.subject import MegasinkSubject
from megasink.checkpoint.weights import gather_weights
from megasink.model.llama import blocks_of, token_losses
from megasink.parallel.layout import ParallelLayout
from megasink.stats.recorder import SinkRecorder
from tests.analysis.runs import trained
from tests.helpers.tiny import tiny_config
from tests.reference.llama import ReferenceConfig, forward
from tests.reference.sink_stats import sink_statistics
from tests.stats.test_against_reference import FROM_HISTOGRAM, HALF_BIN

SEQUENCES = 3


@pytest.fixture(params=["off", "on", "backward-only"])
def model(request):
    return trained(tiny_config(v_scale=request.param)).double().requires_grad_(False)


def samples_for(config) -> np.ndarray:
    return np.random.default_rng(0).integers(config.vocab_size, size=(SEQUENCES, config.seq_length + 1))


def measured(model):
    return measure(MegasinkSubject(model), samples_for(model.config), 20, lambda tokens: None, wanted=Wanted())


def test_equals_the_naive_reference(model):
    config = model.config
    reference_config = ReferenceConfig(
        config.num_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.kv_channels,
        config.rotary_base,
        config.norm_epsilon,
        config.v_scale,
        config.init_method_std,
    )
    weights = {name: w.double() for name, w in gather_weights(model, config, ParallelLayout()).items()}
    for layer in range(config.num_layers):  # not stored when it is not learned
        weights.setdefault(f"model.layers.{layer}.self_attn.v_scale.theta", torch.zeros(2, dtype=torch.float64))
    text = torch.from_numpy(samples_for(config))
    stats = sink_statistics(weights, reference_config, text[:, :-1], text[:, 1:], gu_length=8)
    result = measured(model)
    arrays = result.report.arrays
    starts, ends = arrays["position_start"], arrays["position_end"]

    def binned(per_token):  # [..., S, T] -> [..., P]
        columns = [per_token[..., a:b].mean(dim=(-2, -1)) for a, b in zip(starts, ends, strict=True)]
        return torch.stack(columns, dim=-1)

    expected = {
        "attention_sink": stats["attention_sink"],
        "gradient_sink_ratio": stats["gradient_sink_ratio"],
        "gradient_sink_ratio_early": stats["gradient_sink_ratio_early"],
        "hidden_norm": binned(stats["hidden_norm"]),
        "hidden_t0_over_early": stats["hidden_t0_over_early"].mean(dim=-1),
        "mlp_out_norm": binned(stats["mlp_out_norm"]),
        "value_norm": binned(stats["value_norm"]),
        "value_grad_norm": binned(stats["value_grad_norm"]),
        "value_grad_norm_all": binned(stats["value_grad_norm_all"]),
    }
    for name, array in expected.items():
        torch.testing.assert_close(
            torch.from_numpy(arrays[name]), array, rtol=1e-8, atol=0, msg=lambda m, n=name: n + m
        )
    loss = forward(weights, reference_config, text[:, :-1], text[:, 1:]).loss
    np.testing.assert_allclose(result.loss, loss.item(), rtol=1e-12)


def test_parts_of_the_samples_change_nothing(model, monkeypatch):
    """Two sequences at a time, and one left over, give the report of all three together."""
    together = measured(model)
    monkeypatch.setitem(measure_module._TOKENS_AT_ONCE, "cpu", 2 * (model.config.seq_length + 1))
    apart = measured(model)
    for name, array in together.report.arrays.items():
        np.testing.assert_allclose(apart.report[name], array, rtol=1e-10, atol=1e-14, err_msg=name)
    for name, array in together.per_sequence.items():
        np.testing.assert_allclose(apart.per_sequence[name], array, rtol=1e-10, atol=1e-14, err_msg=name)


def test_equals_one_live_report_of_the_whole_batch(model):
    config = model.config
    text = torch.from_numpy(samples_for(config))
    recorder = SinkRecorder(config, model.layout, blocks_of(model))
    recorder.start("full")
    token_losses(model(text[:, :-1]), text[:, 1:], config, model.layout).mean().backward()
    live = recorder.report(step=20)
    result = measured(model)
    assert result.report.meta.items() >= live.meta.items()
    for name, array in live.arrays.items():
        tolerance = HALF_BIN if name.endswith(FROM_HISTOGRAM) else 1e-10
        np.testing.assert_allclose(result.report[name], array, rtol=tolerance, atol=1e-14, err_msg=name)


def test_per_sequence_figures_average_to_the_report(model):
    result = measured(model)
    np.testing.assert_allclose(
        result.per_sequence["attention_sink"].mean(axis=0), result.report["attention_sink"].mean(axis=1)
    )
    np.testing.assert_allclose(result.per_sequence["hidden_t0"].mean(axis=0), result.report["hidden_norm"][:, 0])
    np.testing.assert_array_equal(result.per_sequence["gradient_sink_ratio"].T, result.report["gradient_sink_ratio"])
