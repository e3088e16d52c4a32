"""Micro-batches recorded one by one, in tensors that the next rewrites (as a CUDA graph does), add up to the batch."""

import numpy as np
import pytest
import torch

from megasink.model.llama import blocks_of, token_losses
from megasink.stats.recorder import SinkRecorder
from megasink.stats.reduce import Sums
from tests.helpers.tiny import tiny_batch, tiny_config
from tests.stats.test_against_reference import model_with_theta, record


@pytest.mark.parametrize("level", ["light", "full"])
def test_merged_figures_are_those_recorded_together(level):
    config = tiny_config(v_scale="on")
    model = model_with_theta(config)
    tokens, labels = tiny_batch(config, sequences=6)
    expected = record(model, tokens, labels, level, micro_batches=3, gradient_scale=0.5)
    recorder = SinkRecorder(config, model.layout, blocks_of(model))
    valid = (labels != -100).sum()
    recorder.start(level)
    rewritten = None
    for rows in torch.arange(6).chunk(3):

        def run(rows=rows):
            loss = token_losses(model(tokens[rows]), labels[rows], config, model.layout).sum() / valid
            loss.backward()
            return loss.detach()

        assert recorder.record_apart(run, None)[1].entries == {}
        _, figures = recorder.record_apart(run, level)
        rewritten = rewritten or figures
        for own, new in zip(tensors(rewritten), tensors(figures), strict=True):
            own.copy_(new)
        recorder.sums.merge(rewritten)
    found = recorder.report(step=0, gradient_scale=0.5)
    assert set(found.arrays) == set(expected.arrays)
    for name, array in expected.arrays.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-12, err_msg=name)


def tensors(sums: Sums) -> list[torch.Tensor]:
    entries = [entry.total for entry in (*sums.entries.values(), *sums.maxima.values())]
    return entries + [values for of_name in sums.per_document.values() for values, _ in of_name]
