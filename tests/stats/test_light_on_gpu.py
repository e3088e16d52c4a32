"""On a GPU light statistics of values come from the kernel that rotates and scales; they are those of the equations.

Without a GPU, as in CI, nothing is tested here.
"""

import numpy as np
import pytest
import torch

from megasink.model import rotary_v_scale
from megasink.model.llama import blocks_of
from tests.helpers.tiny import tiny_batch, tiny_config
from tests.stats.test_against_reference import model_with_theta, record

OF_VALUES = ("value_norm", "value_grad_norm", "value_grad_norm_all", "value_drain", "v_scale_c", "attention_sink")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("compiled", [False, True])
def test_light_statistics_of_values_are_those_of_float64(compiled, recompute, monkeypatch):
    passes = []
    kernel = rotary_v_scale.rotate_and_scale
    if not compiled:
        monkeypatch.setattr(rotary_v_scale, "rotate_and_scale", lambda *a: passes.append(a) or kernel(*a))
    torch._dynamo.reset()
    config = tiny_config(v_scale="on", head_dim=32)
    model = model_with_theta(config).bfloat16()
    tokens, labels = tiny_batch(config, sequences=8)
    expected = record(model.double(), tokens, labels, "light")
    model.bfloat16().cuda()
    for block in blocks_of(model):
        block.prepare(recompute, compile=compiled)
    found = record(model, tokens.cuda(), labels.cuda(), "light", micro_batches=2)
    for name in OF_VALUES:
        error = np.abs(found[name] - expected[name]).max() / np.abs(expected[name]).max()
        assert error < 0.05, (name, error)
    assert compiled or passes
