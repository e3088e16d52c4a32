"""The planner's activation memory against the bytes autograd keeps of the real blocks."""

import gc
import warnings

import pytest
import torch

from megasink.config import RunConfig
from megasink.config.cli import from_dict
from megasink.model.rope import rotary_tables
from megasink.plan.activations import block_bytes, head_bytes
from megasink.plan.meta_model import meta_stage
from megasink.plan.shape import copied_weights
from megasink.stats.recorder import Level, SinkRecorder
from tests.plan.counting import compiled_without_code, counted_autograd, storages, tensors

SMALL = {"hidden": 256, "ffn": 704, "heads": 8, "groups": 8, "batch": 2, "length": 256}
WIDE = {"hidden": 128, "ffn": 1024, "heads": 8, "groups": 2, "batch": 4, "length": 192}
LONG = {"hidden": 192, "ffn": 384, "heads": 16, "groups": 4, "batch": 1, "length": 1024}


def run_of(
    shape: dict, recompute="none", tp=1, sp=False, cp=1, v_scale="on", precision="bf16", layers=1, zero=3
) -> RunConfig:
    """ZeRO-3: the blocks counted here have their weights each where it is, not in a flat buffer."""
    model = {
        "num_layers": layers,
        "hidden_size": shape["hidden"],
        "ffn_hidden_size": shape["ffn"],
        "num_attention_heads": shape["heads"],
        "num_query_groups": shape["groups"],
        "seq_length": shape["length"],
        "vocab_size": 1000,
        "v_scale": v_scale,
    }
    parallel = {
        "tensor_model_parallel_size": tp,
        "sequence_parallel": sp,
        "context_parallel_size": cp,
        "recompute": recompute,
        "zero_stage": zero,
    }
    training = {"micro_batch_size": shape["batch"], "precision": precision}
    sections = {"model": model, "parallel": parallel, "training": training, "sink_stats": {"sink_stats": "off"}}
    return from_dict(RunConfig, sections, "test")


LAYOUTS = [
    {},
    {"v_scale": "off"},
    {"v_scale": "backward-only"},
    {"tp": 2},
    {"tp": 2, "sp": True},
    {"tp": 4, "sp": True, "v_scale": "off"},
    {"cp": 2},
]


@pytest.mark.parametrize("shape", [SMALL, WIDE, LONG], ids=["small", "wide", "long"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_eager_blocks_keep_what_the_formula_says(shape, layout):
    config = run_of(shape, "none", **layout, layers=3)
    assert kept_by_one_more_block(config) == pytest.approx(block_bytes(config, compiled=False), rel=0.05)


@pytest.mark.parametrize("layout", [{}, {"tp": 2, "sp": True}], ids=str)
def test_recomputed_eager_blocks_keep_their_input(layout):
    config = run_of(SMALL, "full", **layout, layers=3)
    assert kept_by_one_more_block(config) == pytest.approx(block_bytes(config, compiled=False), rel=0.05)


SELECTIVE = [(SMALL, {}), (WIDE, {"tp": 2}), (LONG, {"tp": 2, "sp": True})]


@pytest.mark.parametrize(("shape", "layout"), SELECTIVE, ids=["small", "wide_tp", "long_sp"])
def test_eager_blocks_under_selective_recomputation_too(shape, layout):
    """Their tensors are kept in Python, where autograd's hooks do not see them."""
    config = run_of(shape, "selective", **layout, layers=3)
    found = kept_by_one_more_block(config, in_python=True)
    assert found == pytest.approx(block_bytes(config, compiled=False), rel=0.05)


def kept_by_one_more_block(config: RunConfig, in_python: bool = False) -> int:
    """On the meta device: three blocks less two."""
    kept = []
    with meta_stage(config, 0) as stage:
        embedding, *blocks, _norm, _output = stage.calls
        for block in blocks:
            block.prepare(config.parallel.recompute)
        hidden_states = embedding(stage.inputs()).detach().requires_grad_()
        blocks[0](hidden_states)  # makes the cos and sin tables
        for count in (2, 3):
            there = tensors(gc.get_objects()) if in_python else list(stage.modules.parameters())
            ignored = set(storages(there))
            with counted_autograd(ignored) as found:
                states = hidden_states
                for block in blocks[:count]:
                    states = block(states)
                if in_python:
                    now = storages(tensors(gc.get_objects()))
                    found |= {key: size for key, size in now.items() if key not in ignored}
            kept.append(sum(found.values()))
            del states, found, there
    return kept[1] - kept[0]


COMPILED = [
    (SMALL, {}),
    (WIDE, {}),
    (LONG, {"v_scale": "off"}),
    (SMALL, {"v_scale": "backward-only"}),
    (WIDE, {"tp": 2, "sp": True}),
    (SMALL, {"cp": 2}),
    (WIDE, {"recompute": "selective", "tp": 2, "sp": True}),
    (LONG, {"recompute": "full"}),
]


@pytest.mark.parametrize(("shape", "layout"), COMPILED, ids=[str(layout) for _, layout in COMPILED])
def test_compiled_blocks_keep_what_the_formula_says(shape, layout):
    config = run_of(shape, **layout)
    assert kept_by_compiled_block(config) == pytest.approx(block_bytes(config, compiled=True), rel=0.05)


@pytest.mark.parametrize(("recompute", "level"), [("none", "light"), ("none", "full"), ("selective", "full")])
def test_statistics_keep_no_more_than_the_formula_says(recompute, level):
    """Full ones without recomputation keep less: query, key and value are products of their own, no joined weights."""
    config = run_of(SMALL, recompute)
    config.sink_stats.sink_stats = level
    planned = block_bytes(config, compiled=True)
    assert 0.8 * planned < kept_by_compiled_block(config, level) < 1.05 * planned


def test_compiled_blocks_keep_no_copy_of_weights_that_are_flat():
    config = run_of(WIDE, zero=1)
    found = kept_by_compiled_block(config, flat=True)
    assert found == pytest.approx(block_bytes(config, compiled=True), rel=0.05)
    copies = 2 * copied_weights(run_of(WIDE, zero=3))
    assert kept_by_compiled_block(config) - found == copies > 0


def kept_by_compiled_block(config: RunConfig, level: Level | None = None, flat: bool = False) -> int:
    """What torch.compile's partitioner chooses; no code is generated. `flat`: weights as DeepSpeed lays them out."""
    with meta_stage(config, 0) as stage, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stage.modules.to_empty(device="cpu")
        (block,) = stage.blocks()
        if flat:
            matrices = [parameter for parameter in block.parameters() if parameter.dim() == 2]
            parts = torch.cat([matrix.detach().flatten() for matrix in matrices]).split([m.numel() for m in matrices])
            for matrix, part in zip(matrices, parts, strict=True):
                matrix.data = part.view(matrix.shape)
        block.prepare(config.parallel.recompute, compile=True)
        recorder = SinkRecorder(stage.config.model, stage.layout, [block])
        if level is not None:
            recorder.start(level)
        hidden_states = torch.zeros(stage.hidden_shape(), dtype=torch.bfloat16, requires_grad=True)
        tables = rotary_tables(stage.config.model, config.model.seq_length, torch.device("cpu"), torch.float32)
        ignored = set(storages([*stage.modules.parameters(), *tables]))
        with compiled_without_code(), counted_autograd(ignored) as found:
            block(hidden_states)
    return sum(found.values())


@pytest.mark.parametrize("shape", [SMALL, WIDE], ids=["small", "wide"])
@pytest.mark.parametrize("layout", [{}, {"tp": 2}, {"tp": 2, "sp": True}], ids=str)
def test_the_head_keeps_what_the_formula_says(shape, layout):
    config = run_of(shape, **layout)
    with meta_stage(config, 0) as stage:
        embedding, _block, norm, output = stage.calls
        hidden_states = embedding(stage.inputs()).detach().requires_grad_()
        ignored = set(storages([*stage.modules.parameters(), hidden_states]))
        with counted_autograd(ignored) as found:
            stage.losses(output(norm(hidden_states)))
    assert sum(found.values()) == pytest.approx(head_bytes(config, compiled=False), rel=0.05)
