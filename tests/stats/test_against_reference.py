"""Every array of a full report, in float64, against statistics by naive loops over autograd's gradients."""

import numpy as np
import pytest
import torch

from megasink.checkpoint.weights import gather_weights
from megasink.config import ModelConfig
from megasink.model.llama import Llama, blocks_of, token_losses
from megasink.stats.recorder import SinkRecorder
from megasink.stats.report import SinkReport
from tests.helpers.tiny import tiny_batch, tiny_config
from tests.stats.expected import expected_report

# known to half a bin of the histogram of |a|, 1/128 octave; with few elements two middle ones may lie in one bin
FROM_HISTOGRAM = ("_abs_median", "_top1_over_median")
HALF_BIN = 2 ** (1 / 128) - 1

MODELS = {
    "plain": {},
    "v_scale": {"v_scale": "on"},
    "backward_only": {"v_scale": "backward-only", "num_query_groups": None},
    "one_key_value_head_tied": {
        "v_scale": "on",
        "num_query_groups": 1,
        "untie_embeddings_and_output_weights": False,
    },
}


def model_with_theta(config: ModelConfig) -> Llama:
    model = Llama(config, seed=11).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("theta"):
                parameter.copy_(torch.linspace(-1.0, 1.0, len(parameter)))
    return model


def record(
    model: Llama, tokens, labels, level: str, micro_batches: int = 1, document_ids=None, gradient_scale=1.0
) -> SinkReport:
    recorder = SinkRecorder(model.config, model.layout, blocks_of(model))
    recorder.start(level)
    valid = (labels != -100).sum()
    for rows in torch.arange(len(tokens)).chunk(micro_batches):
        inputs = tokens[rows] if document_ids is None else (tokens[rows], document_ids[rows])
        (token_losses(model(inputs), labels[rows], model.config, model.layout).sum() / valid).backward()
    return recorder.report(step=0, gradient_scale=gradient_scale)


def assert_equal(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    tolerance = HALF_BIN if name.endswith(FROM_HISTOGRAM) else 1e-9
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("model", MODELS)
def test_full_report_equals_the_reference(model):
    """Also over micro-batches, with labels masked unequally."""
    config = tiny_config(seq_length=70, **MODELS[model])  # longer than Gu's T = 64
    ours = model_with_theta(config)
    tokens, labels = tiny_batch(config, sequences=2)
    expected = expected_report(config, gather_weights(ours, config, ours.layout), tokens, labels)
    for micro_batches in (1, 2):
        report = record(ours, tokens, labels, "full", micro_batches)
        assert set(report.arrays) == set(expected)
        for name, array in expected.items():
            assert_equal(report[name], array, name)


@pytest.mark.parametrize("reset_position_ids", [True, False])
def test_position_0_is_each_documents_first_token(reset_position_ids):
    """Packed documents that do not see each other: several of other lengths, one of a single token, one sequence whole.

    Documents shorter than Gu's T have no alpha; one-token documents have no ratio."""
    config = tiny_config(v_scale="on", seq_length=100, reset_attention_mask=True, reset_position_ids=reset_position_ids)
    model = model_with_theta(config)
    tokens, labels = tiny_batch(config, sequences=4)
    starts = [[0, 5, 6, 30], [0], [0, 64], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 99]]
    ids = torch.tensor([[sum(t >= start for start in row) for t in range(100)] for row in starts])
    expected = expected_report(config, gather_weights(model, config, model.layout), tokens, labels, starts)
    for micro_batches in (1, 2):
        report = record(model, tokens, labels, "full", micro_batches, ids)
        for name, array in expected.items():
            assert_equal(report[name], array, name)


def test_light_report_is_part_of_the_full_one():
    config = tiny_config(v_scale="on")
    model = model_with_theta(config)
    tokens, labels = tiny_batch(config)
    light, full = (record(model, tokens, labels, level) for level in ("light", "full"))
    assert "value_grad_norm" in light.arrays and "query_grad_norm" not in light.arrays
    for name, array in light.arrays.items():
        np.testing.assert_allclose(array, full[name], rtol=1e-12, err_msg=name)


def test_a_pass_without_a_backward_pass_is_passed_over():
    config = tiny_config(v_scale="on")
    model, (tokens, labels) = model_with_theta(config), tiny_batch(config)
    expected = record(model, tokens, labels, "full", micro_batches=2)
    recorder = SinkRecorder(config, model.layout, blocks_of(model))
    recorder.start("full")
    for rows in torch.arange(len(tokens)).chunk(2):
        model(tokens.flip(0)[rows])
        losses = token_losses(model(tokens[rows]), labels[rows], config, model.layout)
        (losses.sum() / (labels != -100).sum()).backward()
    found = recorder.report(step=0)
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert not recorder.pending
