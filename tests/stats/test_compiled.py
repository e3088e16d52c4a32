"""Compiled blocks report what eager ones do, with and without recomputation; taps force no graph break."""

import numpy as np
import pytest
import torch

from megasink.model.llama import blocks_of
from megasink.model.recompute import recomputed
from tests.helpers.tiny import tiny_batch, tiny_config
from tests.stats.test_against_reference import model_with_theta, record


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("level", ["light", "full"])
def test_compiled_blocks_report_the_same(level, recompute):
    """Traced by dynamo and AOT autograd, as on a GPU; only code generation is left out."""
    torch._dynamo.reset()
    config = tiny_config(v_scale="on", num_layers=2)
    model = model_with_theta(config)
    tokens, labels = tiny_batch(config, sequences=2)
    eager = record(model, tokens, labels, level)
    for block in blocks_of(model):
        block.run = torch.compile(recomputed(block.transform, recompute), backend="aot_eager", fullgraph=True)
    for _ in range(2):
        compiled = record(model, tokens, labels, level)
        for name, array in eager.arrays.items():
            np.testing.assert_allclose(compiled[name], array, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("mode", ["on", "backward-only"])
def test_backward_only_is_not_reassociated(mode):
    """In bf16 the compiler may not turn the bracket into (sg(v) + phi v) - sg(phi v): the forward value stays v."""
    torch._dynamo.reset()
    from megasink.model.v_scale import VScale
    from megasink.parallel.layout import Axis

    valve = VScale(mode, 2, 5.0, Axis(), None).bfloat16()
    value = torch.randn(1, 8, 2, 16, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_(True)
    compiled = torch.compile(valve, backend="aot_eager", fullgraph=True)(value)
    (found,) = torch.autograd.grad(compiled.float().square().sum(), value)
    eager = valve(value)
    (expected,) = torch.autograd.grad(eager.float().square().sum(), value)
    assert torch.equal(compiled, eager) and torch.equal(found, expected)
    if mode == "backward-only":
        assert torch.equal(compiled, value)
