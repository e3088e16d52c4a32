"""Every layout trains as one process does: losses, gradient norms, each parameter's share of them, and the weights.

One set of processes per world size runs all its cases.
"""

import pytest
import torch

from megasink.checkpoint.weights import gather_weights
from megasink.model.llama import Llama
from megasink.parallel.layout import ParallelLayout
from tests.helpers.layouts import MODELS, STEPS, Case, model_of, norm_share, train
from tests.helpers.ranks import run_ranks

LAYOUTS = {
    2: [
        Case("", tensor=2, micro_batch=4),
        Case("", tensor=2, sequence_parallel=True, micro_batch=4),
        Case("", pipeline=2),
        Case("", pipeline=2, split="3,1"),
        Case("", zero=0),
        Case("", zero=1),
        Case("", zero=2),
        Case("", zero=3),
        Case("", tensor=2, zero=2, micro_batch=8),
        Case("", pipeline=2, zero=0, micro_batch=1),
        Case("", context=2),
    ],
    4: [
        Case("", tensor=4, micro_batch=4),
        Case("", pipeline=4, micro_batch=1),
        Case("", pipeline=2),
        Case("", tensor=2, pipeline=2),
        Case("", tensor=2, zero=1),
        Case("", tensor=2, zero=2),
        Case("", tensor=2, zero=3),
    ],
}
TIED_AND_UNTIED = ("v_scale_gqa", "v_scale_tied")
# what is not crossed with every layout meets several that differ
PAIRS = {
    1: [
        Case("v_scale_gqa", micro_batch=8),
        Case("v_scale_gqa", recompute="selective"),
        Case("v_scale_tied", recompute="full"),
        Case("v_scale_tied", zero=0, recompute="selective"),
        Case("plain_mha", zero=2, recompute="full"),
        Case("one_key_value_head_tied", zero=3),
    ],
    2: [
        Case("one_key_value_head_tied", tensor=2),
        Case("one_key_value_head_tied", pipeline=2, recompute="full"),
        Case("plain_mha", tensor=2, sequence_parallel=True, recompute="selective"),
        Case("plain_mha", zero=3, recompute="full", micro_batch=4),
        Case("documents", tensor=2, sequence_parallel=True, recompute="full"),
        Case("documents", pipeline=2),
        Case("documents", zero=2),
    ],
    4: [
        Case("one_key_value_head_tied", tensor=4, sequence_parallel=True, micro_batch=4),
        Case("one_key_value_head_tied", tensor=2, zero=0),
        Case("one_key_value_head_tied", context=4, zero=2, micro_batch=4),
        Case("v_scale_gqa", tensor=2, pipeline=2, sequence_parallel=True, recompute="selective"),
        Case("v_scale_gqa", tensor=2, zero=3, sequence_parallel=True, recompute="full"),
        Case("v_scale_tied", tensor=2, context=2, sequence_parallel=True, micro_batch=4),
        Case("plain_mha", pipeline=2),
        Case("documents", pipeline=4),
        Case("documents", pipeline=2, context=2, recompute="full"),
    ],
}
CASES = {
    world: [case.on(model) for case in LAYOUTS.get(world, []) for model in TIED_AND_UNTIED] + PAIRS[world]
    for world in PAIRS
}
BF16 = {
    2: [
        Case("v_scale_gqa", precision="bf16", tensor=2, sequence_parallel=True, micro_batch=4),
        Case("v_scale_tied", precision="bf16", pipeline=2),
        Case("v_scale_gqa", precision="bf16"),
        Case("v_scale_gqa", precision="bf16", zero=3),
    ],
    4: [
        Case("v_scale_gqa", precision="bf16", tensor=2, pipeline=2),
        Case("v_scale_gqa", precision="bf16", tensor=2),
        Case("v_scale_tied", precision="bf16", pipeline=2),
        Case("v_scale_gqa", precision="bf16", tensor=2, zero=2),
    ],
}
SHARES = {  # parameters whose share of the gradient norm is looked at by itself
    "theta": r"theta$",
    "norms": r"norm\.weight$|^5\.weight$",
    "key and value": r"[kv]_proj",
    "other matrices": r"([qo]|gate|up|down)_proj",
}
SHARE_LAYOUTS = {
    2: [
        Case("v_scale_gqa", tensor=2, sequence_parallel=True),
        Case("one_key_value_head_tied", tensor=2),
        Case("one_key_value_head_tied", pipeline=2),
        Case("v_scale_gqa", pipeline=2, zero=0),
        Case("v_scale_gqa", pipeline=2, precision="bf16"),
        Case("v_scale_gqa", tensor=2, zero=3),
    ],
    4: [
        Case("v_scale_gqa", tensor=4),
        Case("v_scale_gqa", tensor=2, pipeline=2, sequence_parallel=True),
        Case("one_key_value_head_tied", tensor=2, zero=2),
    ],
}
# largest relative differences seen, bf16: loss 8e-4, norm 4e-3, weights 3e-3 (fp32: 3e-7, 5e-7, 9e-7)
BF16_LOSS = 2e-3
BF16_NORM = 1e-2
BF16_WEIGHTS = 5e-3


def run_cases(cases: list[Case], share_cases: list[Case]) -> tuple[list[dict], list[dict]]:
    shares = [{name: norm_share(case, pattern) for name, pattern in SHARES.items()} for case in share_cases]
    return [train(case) for case in cases], shares


@pytest.fixture(scope="module")
def results() -> dict:
    return run_all()


def run_all() -> dict:
    """{(ranks, case): [what each rank found]}, and {("share", ranks, case): [...]}."""
    single = [Case(model) for model in MODELS]
    single += [Case(model, precision="bf16") for model in TIED_AND_UNTIED]
    plans = {
        1: (single + PAIRS[1], [Case(model) for model in MODELS if model.startswith(("v_scale", "one"))]),
        2: (CASES[2] + BF16[2], SHARE_LAYOUTS[2]),
        4: (CASES[4] + BF16[4], SHARE_LAYOUTS[4]),
    }
    found = {}
    for world, (cases, share_cases) in plans.items():
        ranks = run_ranks(world, run_cases, cases, share_cases)
        for index, case in enumerate(cases):
            found[world, case] = [trained[index] for trained, _ in ranks]
        for index, case in enumerate(share_cases):
            found["share", world, case] = [shares[index] for _, shares in ranks]
    return found


def every(plan: dict[int, list[Case]]):
    return pytest.mark.parametrize(
        ("world", "case"), [pytest.param(w, c, id=f"{w} ranks {c}") for w, cases in plan.items() for c in cases]
    )


@every(CASES)
def test_layout_trains_as_one_process(results, world, case):
    """10 steps with unequal masks in fp32 and an evaluation: losses, gradient norms, final weights, on every rank."""
    expected = results[1, Case(case.model)][0]
    for rank in results[world, case]:
        assert rank["losses"] == pytest.approx(expected["losses"], rel=1e-5)
        assert rank["norms"] == pytest.approx(expected["norms"], rel=1e-5)
    assert_weights_near(results[world, case], expected, 1e-5)


def test_the_weights_moved(results):
    """Otherwise nothing above would mean anything: each parameter moved far beyond the bound."""
    trained = results[1, Case("v_scale_gqa")][0]
    config = model_of("v_scale_gqa")
    untrained = gather_weights(Llama(config, seed=1234), config, ParallelLayout())
    for name, weight in untrained.items():
        moved = (trained["weights"][name] - weight).norm() / trained["weights"][name].norm()
        assert moved > 1e-3, name
    assert len(trained["losses"]) == STEPS + 1


@every(BF16)
def test_layout_trains_as_one_process_in_bf16(results, world, case):
    """fp32 master weights and accumulation: only the rounding of activations differs."""
    expected = results[1, Case(case.model, precision="bf16")][0]
    for rank in results[world, case]:
        assert rank["losses"] == pytest.approx(expected["losses"], rel=BF16_LOSS)
        assert rank["norms"] == pytest.approx(expected["norms"], rel=BF16_NORM)
    assert_weights_near(results[world, case], expected, BF16_WEIGHTS)


def test_bf16_follows_fp32(results):
    losses = results[1, Case("v_scale_gqa", precision="bf16")][0]["losses"]
    assert losses == pytest.approx(results[1, Case("v_scale_gqa")][0]["losses"], rel=BF16_LOSS)


@every(SHARE_LAYOUTS)
def test_each_parameter_counts_once_in_the_gradient_norm(results, world, case):
    """A head-sharded parameter counted on one rank only, or a replicated one counted twice, hides in the total."""
    expected = results["share", 1, Case(case.model)][0]
    for rank in results["share", world, case]:
        assert rank == pytest.approx(expected, rel=1e-5 if case.precision == "fp32" else BF16_NORM)


def assert_weights_near(ranks: list[dict], expected: dict, bound: float) -> None:
    seen = set()
    for rank in ranks:
        for name, weight in rank["weights"].items():
            reference = expected["weights"][name].double()
            difference = (weight.double() - reference).norm() / reference.norm()
            assert torch.isfinite(difference) and difference <= bound, f"{name}: {difference:.2e}"
            seen.add(name)
    assert seen == set(expected["weights"])
