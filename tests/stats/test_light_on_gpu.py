"""On a GPU light statistics come from the kernels that do the block's work; they are those of the equations.

Without a GPU, as in CI, nothing is tested here.
"""

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from megasink.model.llama import blocks_of
from tests.helpers.tiny import tiny_batch, tiny_config
from tests.stats.test_against_reference import model_with_theta, record

OF_VALUES = ("value_norm", "value_grad_norm", "value_grad_norm_all", "value_drain", "attention_sink")
OF_HIDDEN_STATES = ("hidden_norm", "mlp_out_norm", "gradient_sink_ratio", "gradient_sink_ratio_early")
KERNELS = {"_rotary_v_scale_kernel", "_rotary_v_scale_gradient_kernel", "_residual_rms_norm_gradient_kernel"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("v_scale, compiled", [("on", False), ("on", True), ("off", True)])
def test_light_statistics_are_those_of_float64(v_scale, compiled, recompute):
    torch._dynamo.reset()
    config = tiny_config(v_scale=v_scale, head_dim=32)
    model = model_with_theta(config).bfloat16()
    tokens, labels = tiny_batch(config, sequences=8)
    expected = record(model.double(), tokens, labels, "light")
    model.bfloat16().cuda()
    for block in blocks_of(model):
        block.prepare(recompute, compile=compiled)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        found = record(model, tokens.cuda(), labels.cuda(), "light", micro_batches=2)
    for name in OF_VALUES + OF_HIDDEN_STATES + (("v_scale_c",) if v_scale == "on" else ()):
        error = np.abs(found[name] - expected[name]).max() / np.abs(expected[name]).max()
        assert error < 0.05, (name, error)
    ran = {event.key for event in profiler.key_averages()}
    assert KERNELS & ran == (KERNELS if compiled else set())
