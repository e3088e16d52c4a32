"""Floating-point operations by formula are those that torch counts in the real model's forward and backward pass."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megasink.model.flops import flops_per_token
from megasink.plan.meta_model import meta_stage
from megasink.plan.parameters import stage_parameters
from megasink.plan.work import micro_batch_work
from tests.plan.runs import LAYOUTS, run_of

_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def forward(query, key, value, *_, out_val=None, **__) -> int:
    """Two products over the causal half."""
    batch, heads, length, width = query
    return 2 * batch * heads * length * length * width


def backward(gradient, query, *_, out_val=None, **__) -> int:
    """Four of them; the kernel computes one more again, which is not counted."""
    return 2 * forward(query, None, None)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", ["gqa_v_scale", "one_kv_head_tied"])
def test_a_rank_computes_what_the_formula_says(model, layout):
    config = run_of(model, layout)
    stages = stage_parameters(config.model, config.parallel)
    counting = {_attention: forward, _attention_backward: backward}
    for stage, parameters in enumerate(stages):
        last = stage == len(stages) - 1
        with meta_stage(config, stage) as held, FlopCounterMode(display=False, custom_mapping=counting) as counter:
            for block in held.blocks():
                block.prepare(config.parallel.recompute)
            inputs = held.inputs()
            if not held.is_first:
                inputs.requires_grad_()
            outputs = held.forward(inputs)
            (held.losses(outputs) if last else outputs).sum().backward()
        by_operation = counter.get_flop_counts()["Global"]
        attention = sum(by_operation.get(operation, 0) for operation in counting)
        work = micro_batch_work(config, parameters, last)
        products = counter.get_total_flops() - attention
        assert attention == work.attention + work.recomputed_attention
        assert products == work.matmul + work.recomputed_matmul


@pytest.mark.parametrize("layout", ["one", "tp2", "tp8_sp", "pp3", "tp4_pp2_split"])
def test_all_ranks_together_compute_the_models_operations(layout):
    """One source: what MFU counts, with the vocabulary's padding."""
    config = run_of("plain", layout)
    stages = stage_parameters(config.model, config.parallel)
    works = [micro_batch_work(config, stage, stage is stages[-1]) for stage in stages]
    ranks, tokens = config.parallel.tensor_model_parallel_size, 2 * config.model.seq_length
    together = ranks * sum(work.matmul + work.attention for work in works)
    config.model.vocab_size = config.model.padded_vocab_size
    assert together == tokens * flops_per_token(config.model)
