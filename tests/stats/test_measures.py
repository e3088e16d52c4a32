"""Formulas of statistics where the reference test does not go."""

import torch

from megasink.stats.measures import INPUT_NORM_BINS, input_norm_sums


def test_norms_that_are_not_finite_end_no_run():
    """A step with NaN is skipped later; until then its statistics must not index outside of their bins."""
    norms = torch.tensor([[torch.nan, torch.inf, -torch.inf, 0.0, 1.0]])
    sums = input_norm_sums(torch.ones_like(norms), norms)
    assert sums.shape == (1, INPUT_NORM_BINS)
    assert sums.sum() == 5
