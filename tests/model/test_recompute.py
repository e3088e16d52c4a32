"""Recomputation changes what is kept, never what comes out."""

from contextlib import nullcontext

import pytest
import torch

from megasink.model.llama import Llama, blocks_of, token_losses
from megasink.parallel.layout import ParallelLayout
from tests.helpers.tiny import tiny_batch, tiny_config


def run(mode: str, compiled: bool = False) -> tuple[float, dict[str, torch.Tensor], int]:
    """Loss, gradients, and bytes the blocks keep for the backward pass. Compiled: traced and differentiated ahead of
    time as on a GPU, with eager kernels."""
    config = tiny_config(v_scale="on")
    model = Llama(config, seed=3)
    for block in blocks_of(model):
        block.prepare(mode, compiled)
    tokens, labels = tiny_batch(config)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        torch.compiler.set_stance(force_backend="aot_eager") if compiled else nullcontext(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        loss = token_losses(model(tokens), labels, config, ParallelLayout()).mean()
        loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}, sum(kept.values())


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_values_and_gradients_are_the_same_to_the_bit(mode):
    loss, gradients, _ = run("none")
    again, gradients_again, _ = run(mode)
    assert again == loss
    for name, gradient in gradients.items():
        assert torch.equal(gradients_again[name], gradient), name


@pytest.mark.parametrize("compiled", [False, True])
def test_full_keeps_less(compiled):
    assert run("full", compiled)[2] < 0.5 * run("none", compiled)[2]


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_a_compiled_block_recomputes_too(mode):
    loss, gradients, _ = run("none")
    again, gradients_again, _ = run(mode, compiled=True)
    assert again == pytest.approx(loss, rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_again[name], gradient, rtol=1e-5, atol=1e-7, msg=name)
