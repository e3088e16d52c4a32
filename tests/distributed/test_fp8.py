"""With fp8 products layouts train as one process does, within the noise of fp8.

Ranks scale their shares of a tensor apart (of weights: TP; of positions: CP; of the batch: ZeRO), and a last bit of
bf16 can move a value to the next of fp8's few. Largest relative differences seen: loss 3e-3, norm 3e-2; a pipeline,
which shares nothing out, agrees to the bit. bf16 lies within that noise too, so that each layout multiplies fp8 at all
is asked by itself.

The first forward pass is sharper: without TP no sum of products is split, and scales of other shares, being powers of
two, round to the same bits. Seen: 1e-7.
"""

from collections.abc import Callable

import pytest

from tests.helpers.layouts import Case, train
from tests.helpers.ranks import run_ranks

STEPS = 4
ONE = Case("v_scale_gqa", precision="bf16", fp8="hybrid")
LAYOUTS = [
    Case("v_scale_gqa", precision="bf16", fp8="hybrid", tensor=2),
    Case("v_scale_gqa", precision="bf16", fp8="hybrid", tensor=2, sequence_parallel=True, recompute="selective"),
    Case("v_scale_gqa", precision="bf16", fp8="hybrid", pipeline=2),
    Case("v_scale_gqa", precision="bf16", fp8="hybrid", context=2, micro_batch=4),
    Case("v_scale_gqa", precision="bf16", fp8="hybrid", context=2, micro_batch=4, zero=2),
    Case("v_scale_gqa", precision="bf16", fp8="hybrid", zero=2),
    Case("v_scale_gqa", precision="bf16", fp8="hybrid", zero=3),
]
IN_BF16 = [case.on(case.model, fp8="off") for case in LAYOUTS]


def run_cases(cases: list[Case]) -> list[dict]:
    return [train(case, STEPS) for case in cases]


@pytest.fixture(scope="module")
def one_process() -> list[dict]:
    return run_ranks(1, run_cases, [ONE, Case("v_scale_gqa", precision="bf16")])[0]


@pytest.fixture(scope="module")
def two_ranks() -> list[list[dict]]:
    return run_ranks(2, run_cases, LAYOUTS + IN_BF16)


def layouts(chosen: Callable[[Case], bool] = lambda case: True):
    return pytest.mark.parametrize(
        "at", [pytest.param(at, id=str(case)) for at, case in enumerate(LAYOUTS) if chosen(case)]
    )


@layouts()
def test_layout_trains_as_one_process(one_process, two_ranks, at):
    for rank in two_ranks:
        assert rank[at]["losses"] == pytest.approx(one_process[0]["losses"], rel=5e-3)
        assert rank[at]["norms"] == pytest.approx(one_process[0]["norms"], rel=4e-2)


@layouts(lambda case: case.tensor == 1)
def test_first_loss_does_not_depend_on_what_is_scaled_apart(one_process, two_ranks, at):
    for rank in two_ranks:
        assert rank[at]["losses"][0] == pytest.approx(one_process[0]["losses"][0], rel=1e-6)


@layouts()
def test_layout_multiplies_in_fp8(two_ranks, at):
    for rank in two_ranks:
        assert rank[at]["losses"] != rank[len(LAYOUTS) + at]["losses"]


def test_fp8_follows_bf16_and_is_another_arithmetic(one_process):
    fp8, bf16 = (found["losses"] for found in one_process)
    assert fp8 != bf16 and fp8 == pytest.approx(bf16, rel=1e-2)
