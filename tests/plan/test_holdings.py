"""What the plan says a rank holds is what the real layers of that rank hold."""

import pytest

from megasink.parallel.pipeline import layer_bounds
from megasink.plan.holdings import stage_holdings, tensor_holdings
from megasink.plan.meta_model import meta_stage
from tests.plan.runs import run_of


@pytest.mark.parametrize("model", ["gqa_v_scale", "one_kv_head_tied"])
def test_tensor_ranks_hold_their_slices(model):
    config = run_of(model, "tp8_sp")
    for rank in (0, 3, 7):
        held = tensor_holdings(config)[rank]
        with meta_stage(config, 0, rank) as stage:
            attention, mlp = stage.blocks()[0].self_attn, stage.blocks()[0].mlp
            shard = attention.q_proj.weight.shard
            heads = shard.rank * attention.num_heads
            assert held.query_heads == (heads, heads + attention.num_heads)
            used = attention.key_value_heads
            assert held.key_value_heads == (used.start, used.stop)
            rows = mlp.gate_proj.weight.shape[0]
            assert held.mlp_columns == (rank * rows, (rank + 1) * rows)
            table = stage.modules[0].weight.shape[0]
            assert held.vocabulary_rows == (rank * table, (rank + 1) * table)


def test_stages_hold_their_blocks():
    config = run_of("plain", "tp4_pp2_split")
    stages = stage_holdings(config, replicas=3)
    assert [held.ranks for held in stages] == [(0, 12), (12, 24)]
    for at, held in enumerate(stages):
        with meta_stage(config, at) as stage:
            assert [block.layer_index for block in stage.blocks()] == list(range(*held.blocks))
    assert layer_bounds([4, 3]) == [0, 5, 10]  # the embedding before, norm and output after
