"""The comparison with one process sees what others get wrong: each mistake is made on purpose on two ranks."""

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist

from megasink.model.attention import Attention
from megasink.model.taps import sum_of_squares, tap_gradient
from megasink.parallel.collectives import all_reduce
from megasink.parallel.layers import enter_tensor_parallel
from megasink.parallel.layout import ParallelLayout
from megasink.stats.reduce import HeadSplit, Owner
from tests.helpers.layouts import Case, layout_of
from tests.helpers.ranks import run_ranks
from tests.stats.test_layouts import SINGLE, differences, reports_of

GQA = Case("v_scale_gqa", tensor=2, micro_batch=4)
GQA_SP = replace(GQA, sequence_parallel=True)
ONE_HEAD = replace(GQA, model="one_key_value_head_tied")
DOCUMENTS = Case("documents", micro_batch=4)


class PartialTap(torch.autograd.Function):
    """g2 where it is still this rank's part of the sum over tensor-parallel ranks."""

    @staticmethod
    def forward(ctx, tensor, leaf, layout):
        ctx.layout = layout
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, gradient):
        squares, axis = sum_of_squares(gradient), ctx.layout.tensor
        own = squares.chunk(axis.size, dim=1)[axis.rank] if ctx.layout.sequence_parallel else squares
        return gradient, own, None


def heads_tapped_inside(self, hidden_states, cos, sin, taps, joined, heads=Attention._heads):
    def entered(states, layout):
        return PartialTap.apply(enter_tensor_parallel(states, layout), taps.attention_norm_grad, layout)

    with patch("megasink.model.attention.enter_tensor_parallel", entered):
        return heads(self, hidden_states, cos, sin, taps, joined)


def g2_inside(case: Case) -> dict[str, np.ndarray]:
    """g2 taken before its all-reduce; under sequence parallelism, after the gather."""
    with (
        patch.object(Attention, "_heads", heads_tapped_inside),
        patch("megasink.model.block.tap_gradient", lambda tensor, leaf: tensor),
    ):
        return light(case)


def mean_of_rank_norms(case: Case) -> dict[str, np.ndarray]:
    """A norm over all heads as the mean of the ranks' norms."""

    def add(sums, name, squares, tokens, layout, owner):
        norms = all_reduce(squares.sum(dim=-1).sqrt(), layout.tensor) / layout.tensor.size
        sums.add(name, Owner.LAYER, tokens.bin_sums(norms), over="_tokens", scale_power=1)

    with patch("megasink.stats.light.add_norm_over_heads", add):
        return light(case)


def heads_counted_twice(case: Case) -> dict[str, np.ndarray]:
    """Each rank that uses a replicated key-value head reports it."""
    split = HeadSplit.of
    with patch.object(HeadSplit, "of", lambda *args: replace(split(*args), owns_key_value_heads=True)):
        return light(case)


def part_of_a_shared_gradient(case: Case) -> dict[str, np.ndarray]:
    """The norm of a replicated head's gradient before the sharing ranks' parts are summed."""
    with patch("megasink.model.attention.tap_shared_gradient", lambda tensor, leaf, *_: tap_gradient(tensor, leaf)):
        return light(case)


def average_of_rank_averages(case: Case) -> dict[str, np.ndarray]:
    """Each data-parallel rank's own report, averaged, though their documents are not equally many."""
    layout = layout_of(case)
    with patch("tests.stats.test_layouts.SinkRecorder", lambda config, _layout, blocks: alone(config, blocks)):
        arrays = light(case)
    averaged = {}
    for name, array in arrays.items():
        if array.ndim and not name.startswith("gradient_sink"):
            tensor = torch.from_numpy(array.astype(np.float64))
            dist.all_reduce(tensor, group=layout.data.group)
            averaged[name] = (tensor / layout.data.size).numpy()
    return averaged


def alone(config, blocks):
    from megasink.stats.recorder import SinkRecorder

    return SinkRecorder(config, ParallelLayout(), blocks)


def light(case: Case) -> dict[str, np.ndarray]:
    return reports_of(case, steps=1, level="light")[0]


MISTAKES = [  # what is done, where, and what it must spoil
    (g2_inside, GQA, "gradient_sink_ratio"),
    (g2_inside, GQA_SP, "gradient_sink_ratio"),
    (mean_of_rank_norms, GQA, "value_grad_norm_all"),
    (heads_counted_twice, ONE_HEAD, "value_norm"),
    (heads_counted_twice, ONE_HEAD, "value_grad_norm_all"),
    (part_of_a_shared_gradient, ONE_HEAD, "value_grad_norm"),
    (average_of_rank_averages, DOCUMENTS, "hidden_norm"),
    (average_of_rank_averages, DOCUMENTS, "attention_sink"),
    (average_of_rank_averages, DOCUMENTS, "value_drain"),
]


def make_mistakes() -> list[dict]:
    return [mistake(case) for mistake, case, _ in MISTAKES]


def correctly() -> list[dict]:
    return [light(SINGLE.on(case.model)) for _, case, _ in MISTAKES]


@pytest.fixture(scope="module")
def found() -> list[tuple[dict, dict]]:
    return list(zip(run_ranks(2, make_mistakes)[0], run_ranks(1, correctly)[0], strict=True))


@pytest.mark.parametrize("index", range(len(MISTAKES)), ids=[f"{m.__name__} {name}" for m, _, name in MISTAKES])
def test_mistake_is_seen(found, index):
    wrong, right = found[index]
    name = MISTAKES[index][2]
    assert differences([{name: wrong[name]}], [{name: right[name]}]) != []
    off = np.nanmax(np.abs(np.sort(wrong[name]) / np.sort(right[name]) - 1))
    assert off > 1e-3, f"{name} only {off:.1e} off: not a mistake that anyone would have to see"
