"""What a step's statistics were taken with is gone when the step is: a run of weeks must not grow."""

import gc

import pytest
import torch

from megasink.analysis.measure import measure
from megasink.analysis.observer import Wanted
from megasink.analysis.subject import MegasinkSubject
from tests.analysis.test_measure import samples_for
from tests.helpers.tiny import tiny_batch, tiny_config
from tests.stats.test_against_reference import model_with_theta, record


def leaves() -> int:
    """Tensors that collect gradients and are no parameters, such as taps."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]
    return sum(tensor.is_leaf and tensor.requires_grad for tensor in tensors)


@pytest.mark.parametrize("level", ["light", "full"])
def test_no_tap_outlives_its_report(level):
    config = tiny_config(v_scale="on")
    model, batch = model_with_theta(config), tiny_batch(config)
    before = leaves()
    for _ in range(3):
        record(model, *batch, level, micro_batches=2)
    assert leaves() == before


def test_no_tap_outlives_an_analysis():
    model = model_with_theta(tiny_config(v_scale="on")).requires_grad_(False)
    before = leaves()
    measure(MegasinkSubject(model), samples_for(model.config), 20, lambda tokens: None, wanted=Wanted())
    assert leaves() == before
