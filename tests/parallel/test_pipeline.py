"""Blocks of pipeline stages."""

import itertools

import pytest

from megasink.config import ModelConfig, ParallelConfig
from megasink.model.llama import llama_layers, stage_blocks
from megasink.parallel.layout import ParallelLayout
from megasink.parallel.pipeline import balanced_blocks, layer_bounds


@pytest.mark.parametrize(("blocks", "stages"), [(4, 2), (7, 3), (9, 4), (5, 5)])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (25, 26), (3, 40)])
def test_no_other_split_has_a_smaller_largest_stage(blocks, stages, before, after):
    def largest(counts) -> int:
        loads = [10 * count for count in counts]
        loads[0] += before
        loads[-1] += after
        return max(loads)

    found = balanced_blocks(blocks, stages, 10, before, after)
    assert sum(found) == blocks and min(found) >= 1
    every = itertools.product(range(1, blocks + 1), repeat=stages)
    assert largest(found) == min(largest(counts) for counts in every if sum(counts) == blocks)


def test_bounds_cover_every_layer():
    config = ModelConfig(num_layers=5, vocab_size=100)
    assert layer_bounds([2, 1, 2]) == [0, 3, 4, len(llama_layers(config, ParallelLayout()))]
    assert layer_bounds([5]) == [0, 8]


def test_the_flag_decides():
    config = ModelConfig(num_layers=6, vocab_size=100)
    assert stage_blocks(config, ParallelConfig(pipeline_model_parallel_size=2, pipeline_split="4,2")) == [4, 2]
    assert stage_blocks(config, ParallelConfig(pipeline_model_parallel_size=2)) == [3, 3]


def test_a_large_vocabulary_weighs():
    config = ModelConfig(num_layers=8, hidden_size=64, ffn_hidden_size=128, num_attention_heads=4, vocab_size=2000)
    first, *middle, last = stage_blocks(config, ParallelConfig(pipeline_model_parallel_size=4))
    assert first < min(middle) and last < min(middle)
