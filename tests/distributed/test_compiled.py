"""Compiled blocks on tensor- and sequence-parallel ranks give one process' numbers, as plain blocks do.

Versions of torch differ here: 2.11 lost gradients where an autograd function's forward ended in a collective.
"""

import torch

from megasink.parallel.layout import ParallelLayout, build_layout
from tests.distributed.test_layers import MODELS
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import forward_backward, tiny_config

CHOSEN = ("v_scale_untied", "one_key_value_head")


def both_layouts() -> list[dict]:
    layouts = [build_layout(2, sequence_parallel=sequence_parallel) for sequence_parallel in (False, True)]
    return [
        forward_backward(tiny_config(**MODELS[model]), layout, compiled=True) for layout in layouts for model in CHOSEN
    ]


def test_compiled_ranks_equal_one_plain_process():
    expected = [forward_backward(tiny_config(**MODELS[model]), ParallelLayout()) for model in CHOSEN]
    for rank in run_ranks(2, both_layouts):
        for index, found in enumerate(rank):
            for name, gradient in expected[index % len(CHOSEN)]["gradients"].items():
                torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-9, atol=1e-14)
            for name, array in expected[index % len(CHOSEN)]["report"].items():
                other = torch.as_tensor(found["report"][name])
                torch.testing.assert_close(other, torch.as_tensor(array), rtol=1e-9, atol=1e-14, equal_nan=True)
