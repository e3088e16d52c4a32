"""The learning rate of each step, and which parameters decay."""

import math

import pytest
from torch import nn

from megasink.config import ModelConfig, OptimizerConfig
from megasink.model.llama import Llama
from megasink.train.optimizer import build_optimizer, learning_rate


def rates(steps: int, **settings) -> list[float]:
    config = OptimizerConfig(lr=1.0, min_lr=0.1, **settings)
    return [learning_rate(step, steps, config) for step in range(steps)]


def test_warm_up_is_linear_and_reaches_the_peak():
    assert rates(10, lr_warmup_iters=4, lr_decay_style="constant") == [0.25, 0.5, 0.75, 1.0] + [1.0] * 6


def test_cosine_starts_at_the_peak_is_half_way_in_the_middle_and_falls_to_the_minimum():
    values = rates(100, lr_warmup_iters=20)
    assert values[20] == 1.0 and values[60] == pytest.approx(0.55) and values[99] == pytest.approx(0.1, abs=1e-3)
    assert values[20:] == sorted(values[20:], reverse=True)


def test_wsd_holds_then_decays_linearly():
    values = rates(10, lr_decay_style="WSD", lr_wsd_decay_iters=4)
    assert values[:7] == [1.0] * 7
    assert values[7:] == pytest.approx([0.775, 0.55, 0.325])


def test_matrices_decay_vectors_do_not():
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.RMSNorm(2))
    decaying, kept = build_optimizer(model, OptimizerConfig(weight_decay=0.1)).param_groups
    assert decaying["weight_decay"] == 0.1 and decaying["params"] == [model[0].weight]
    assert kept["weight_decay"] == 0.0 and kept["params"] == [model[1].weight]


@pytest.mark.parametrize(("hidden_size", "heads"), [(64, 1), (64, 2), (64, 4), (64, 8), (100, 2)])
def test_behind_each_other_weights_begin_at_addresses_as_even_as_their_sizes(hidden_size, heads):
    """As DeepSpeed lays a group out. A GPU loads up to 16 bytes (8 of bf16) at once, as many as divide the size, in a
    block that was compiled once for all layers."""
    shape = dict(num_layers=3, hidden_size=hidden_size, ffn_hidden_size=64, num_attention_heads=8, head_dim=16)
    model = Llama(ModelConfig(**shape, num_query_groups=heads, vocab_size=128, seq_length=16, v_scale="on"))
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in build_optimizer(model, OptimizerConfig()).param_groups:
        begin = 0
        for parameter in group["params"]:
            assert begin % math.gcd(parameter.numel(), 8) == 0, names[parameter]
            begin += parameter.numel()
