"""Simulated 8-bit inference: exact where it can be, and it shows what massive activations do to a fixed scale."""

import math
from pathlib import Path

import numpy as np
import torch

from megasink.analysis.quantization import fake_quantize, per_row_scale, quantization_losses
from megasink.analysis.source import find_source, load_subject
from megasink.analysis.subject import MegasinkSubject
from tests.analysis.runs import trained
from tests.analysis.test_planted import H, V, blank, save
from tests.helpers.tiny import tiny_config

OUTLIER, LENGTH = 1, 16
BF16, DYNAMIC, STATIC, DYNAMIC_DOWN, STATIC_DOWN = range(5)


def counting_losses(folder: Path, gain: float) -> tuple[list[float], np.ndarray]:
    """Of a model whose MLP names the token after each token, one inner unit for each; and the samples evaluated.

    The unit of OUTLIER is `gain` times as large as the others and its weight on the way out as much smaller.
    """
    config, weights = blank(kv_heads=4)
    config.ffn_hidden_size = V
    units = torch.eye(V, H) / math.sqrt(H)
    size = torch.ones(V)
    size[OUTLIER] = gain
    weights["model.layers.0.mlp.gate_proj.weight"] = 10 * units  # silu(10) is 10
    weights["model.layers.0.mlp.up_proj.weight"] = size[:, None] * units
    out = torch.zeros(H, V)
    for token in range(V):
        out[V + (token + 1) % V, token] = 0.8 / size[token]
    weights["model.layers.0.mlp.down_proj.weight"] = out
    weights["lm_head.weight"][:, V:] = 5 * torch.eye(V)
    source = find_source(save(folder, "megasink", config, weights))
    subject = load_subject(source, torch.device("cpu"))
    samples = np.array([(start + np.arange(LENGTH + 1)) % V for start in range(0, V, 4)])
    assert (samples[:2] == OUTLIER).any()  # the calibration text holds it
    return [row.loss for row in quantization_losses(subject, samples)], samples[2:]


def test_values_on_the_grid_stay():
    values = torch.tensor([[-127.0, 3.0, 126.0], [0.5, -0.25, 127 / 256]])
    torch.testing.assert_close(fake_quantize(values, per_row_scale(values))[0], values[0], rtol=0, atol=0)
    scale = torch.tensor(1.0)
    assert [fake_quantize(torch.tensor(x), scale).item() for x in (0.4, -0.6, 500.0)] == [0.0, -1.0, 127.0]


def test_zeros_stay_zero():
    zeros = torch.zeros(2, 3)
    torch.testing.assert_close(fake_quantize(zeros, per_row_scale(zeros)), zeros, rtol=0, atol=0)


def test_a_massive_activation_spoils_the_fixed_scale_only(tmp_path):
    quiet, _ = counting_losses(tmp_path / "quiet", gain=1.0)
    assert max(quiet) < 1e-3
    loud, samples = counting_losses(tmp_path / "loud", gain=1000.0)
    assert max(loud[BF16], loud[DYNAMIC], loud[DYNAMIC_DOWN]) < 1e-3
    forgotten = (samples[:, :-1] != OUTLIER).mean()  # every other unit is rounded to zero: all V tokens alike
    for name in (STATIC, STATIC_DOWN):
        np.testing.assert_allclose(loud[name], forgotten * math.log(V), rtol=1e-3)


def test_weights_are_put_back():
    model = trained(tiny_config()).requires_grad_(False)
    expected = {name: parameter.bfloat16() for name, parameter in model.named_parameters()}
    quantization_losses(MegasinkSubject(model), np.random.default_rng(0).integers(91, size=(4, 25)))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=0)
