"""Tensor, sequence and data parallelism of the bare model in float64: nothing may differ from one process."""

import pytest
import torch

from megasink.parallel.layout import ParallelLayout, build_layout
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import forward_backward, tiny_config

LAYOUTS = [  # tensor parallel, sequence parallel; the remaining ranks are data parallel
    (1, False),
    (2, False),
    (2, True),
]
MODELS = {
    "plain": {},
    "v_scale_untied": {"v_scale": "on"},
    "v_scale_tied": {"v_scale": "on", "untie_embeddings_and_output_weights": False},
    "backward_only_mha": {"v_scale": "backward-only", "num_query_groups": None},
    "one_key_value_head": {"v_scale": "on", "num_query_groups": 1},
}


def all_layouts() -> list[dict]:
    results = []
    for tensor_parallel, sequence_parallel in LAYOUTS:
        layout = build_layout(tensor_parallel, sequence_parallel=sequence_parallel)
        results += [forward_backward(tiny_config(**changes), layout) for changes in MODELS.values()]
    return results


@pytest.fixture(scope="module")
def single() -> list[dict]:
    return [forward_backward(tiny_config(**changes), ParallelLayout(), micro_batches=2) for changes in MODELS.values()]


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request) -> list[list[dict]]:
    return run_ranks(request.param, all_layouts)


def test_loss_gradients_and_statistics_equal_one_process(ranks, single):
    """Loss, each parameter's gradient and each statistic, with unequal masks, on every rank."""
    for rank in ranks:
        for index, found in enumerate(rank):
            tensor_parallel, sequence_parallel = LAYOUTS[index // len(MODELS)]
            model = list(MODELS)[index % len(MODELS)]
            expected = single[index % len(MODELS)]
            where = f"TP{tensor_parallel} SP={sequence_parallel} of {len(ranks)} ranks, {model}"
            assert found["loss"] == pytest.approx(expected["loss"], rel=1e-12), where
            for name, gradient in expected["gradients"].items():
                _assert_equal(found["gradients"][name], gradient, f"{where}: gradient of {name}")
            for name, array in expected["report"].items():
                array, other = (_sorted_sequences(name, each) for each in (array, found["report"][name]))
                _assert_equal(torch.as_tensor(other), torch.as_tensor(array), f"{where}: {name}")


def _assert_equal(found: torch.Tensor, expected: torch.Tensor, where: str) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-14, msg=lambda text: f"{where}: {text}")


def _sorted_sequences(name: str, array):
    """Layouts meet the sequences in another order; as a set they are the same."""
    if name.startswith("gradient_sink_ratio"):
        array = array.copy()
        array.sort(axis=-1)
    return array
