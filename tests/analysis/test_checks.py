"""The checks that run with every analysis pass on a sound model and fail on what they are there to catch."""

import numpy as np
import pytest
import torch

from megasink.analysis import checks
from megasink.analysis.checks import check_model
from megasink.analysis.subject import MegasinkSubject
from tests.analysis.runs import trained
from tests.helpers.tiny import tiny_config


def run(v_scale: str = "on"):
    model = trained(tiny_config(v_scale=v_scale)).requires_grad_(False)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    found = check_model(MegasinkSubject(model), np.random.default_rng(0).integers(91, size=25))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=0)
        assert not parameter.requires_grad
    return {check.name: check for check in found}


@pytest.mark.parametrize("v_scale", ["off", "on", "backward-only"])
def test_a_sound_model_passes_and_is_left_as_it_was(v_scale):
    found = run(v_scale)
    assert all(check.passed for check in found.values()), found
    assert found["gradient against a finite difference"].error is not None
    assert (found["theta reported as it is stored"].error is not None) == (v_scale == "on")


def test_a_wrong_log_sum_exp_is_caught(monkeypatch):
    keep = checks._OneAttention._keep
    wrong = lambda self, query, key, value, lse, first: keep(self, query, key, value, lse + 0.01, first)  # noqa: E731
    monkeypatch.setattr(checks._OneAttention, "_keep", wrong)
    found = run()
    assert not found["attention rows sum to 1"].passed
    assert not found["log-sum-exp against the whole matrix"].passed


def test_a_wrong_backward_pass_is_caught(monkeypatch):
    monkeypatch.setattr("megasink.model.v_scale._VScale.backward", staticmethod(lambda ctx, g: (g, None, None, None)))
    assert not run()["gradient against a finite difference"].passed
