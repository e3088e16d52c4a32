"""Packed documents do not see each other, on either path of attention, and positions count from their first token."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from megasink.model.documents import (
    document_attention,
    find_boundaries,
    first_tokens,
    flex_document_attention,
    positions_in_document,
    same_document,
)
from megasink.model.llama import Llama, token_losses
from megasink.parallel.layout import ParallelLayout
from tests.helpers.tiny import tiny_batch, tiny_config
from tests.reference.llama import ReferenceConfig, forward

DOCUMENT_IDS = torch.tensor([[0] * 5 + [1] * 1 + [2] * 12 + [3] * 6, [0] * 24], dtype=torch.int32)
STARTS = [[0, 5, 6, 18], [0]]
FLAGS = {"reset_attention_mask": True, "reset_position_ids": True}


def test_first_tokens_and_positions():
    ids = torch.tensor([[7, 7, 7, 9, 9, 12]])
    assert first_tokens(ids).tolist() == [[0, 0, 0, 3, 3, 5]]
    assert positions_in_document(ids).tolist() == [[0, 1, 2, 0, 1, 0]]


@torch.no_grad()
def test_a_change_in_one_document_cannot_move_anothers_logits():
    config = tiny_config(v_scale="on", **FLAGS)
    model = Llama(config, seed=1)
    tokens, _ = tiny_batch(config, sequences=2)
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % config.vocab_size  # in document 2 of the first sequence
    before, after = model(tokens, DOCUMENT_IDS), model(changed, DOCUMENT_IDS)
    moved = (before != after).any(dim=-1)
    assert not moved[0, :7].any() and not moved[0, 18:].any() and not moved[1].any()
    assert moved[0, 7:18].all()
    assert ((model(tokens) != model(changed)).any(dim=-1))[0, 7:].all()  # without boundaries it reaches the end


@torch.no_grad()
def test_a_document_gives_the_logits_it_has_alone():
    config = tiny_config(**FLAGS)
    model = Llama(config, seed=1).double()
    tokens, _ = tiny_batch(config, sequences=2)
    alone = model(tokens[:1, 6:18])
    torch.testing.assert_close(model(tokens, DOCUMENT_IDS)[:1, 6:18], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reset_positions", [True, False])
def test_loss_and_gradients_equal_the_reference(reset_positions):
    config = tiny_config(v_scale="on", reset_attention_mask=True, reset_position_ids=reset_positions)
    model = Llama(config, seed=1).double()
    tokens, labels = tiny_batch(config, sequences=2)
    loss = token_losses(model(tokens, DOCUMENT_IDS), labels, config, ParallelLayout()).sum() / (labels != -100).sum()
    loss.backward()
    from megasink.checkpoint.weights import gather_weights, hugging_face_name

    weights = {
        name: weight.double().clone().requires_grad_()
        for name, weight in gather_weights(model, config, ParallelLayout()).items()
    }
    reference = ReferenceConfig(3, 48, 4, 2, 16, v_scale="on", sigma=config.init_method_std)
    trace = forward(weights, reference, tokens, labels, STARTS, reset_positions)
    trace.loss.backward()
    torch.testing.assert_close(loss, trace.loss, rtol=1e-10, atol=0)
    for name, parameter in model.named_parameters():
        expected = weights[hugging_face_name(config, name)].grad
        torch.testing.assert_close(parameter.grad[: len(expected)], expected, rtol=1e-8, atol=1e-12, msg=name)


def test_positions_alone_leave_attention_whole():
    """--reset-position-ids without --reset-attention-mask: documents see each other at repeated positions."""
    config = tiny_config(reset_position_ids=True)
    model = Llama(config, seed=1)
    tokens, _ = tiny_batch(config, sequences=2)
    changed = tokens.clone()
    changed[0, 0] = (changed[0, 0] + 1) % config.vocab_size
    moved = (model(tokens, DOCUMENT_IDS) != model(changed, DOCUMENT_IDS)).any(dim=-1)
    assert moved[0].all()
    assert (model(tokens, DOCUMENT_IDS) != model(tokens)).any(dim=-1)[0, 5:].any()


@torch.no_grad()
def test_the_gpu_path_computes_the_same():
    """Flex attention with our mask and arguments, here uncompiled on a CPU, against attention per document."""
    generator = torch.Generator().manual_seed(2)
    query, key, value = torch.randn(3, 2, 4, 24, 16, generator=generator).unbind()
    boundaries = find_boundaries(DOCUMENT_IDS)
    context, log_sum_exp = document_attention(query, key, value, boundaries)
    block_mask = create_block_mask(same_document(DOCUMENT_IDS), 2, None, 24, 24, device="cpu")
    flex_context, flex_log_sum_exp = flex_document_attention(flex_attention, query, key, value, block_mask)
    torch.testing.assert_close(flex_context, context, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(flex_log_sum_exp, log_sum_exp, rtol=1e-5, atol=1e-6)
