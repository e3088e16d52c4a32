"""A forward analysis in the memory of one block: the same figures, and never more than one block's weights."""

import numpy as np
import pytest
import torch

from megasink.analysis.measure import measure
from megasink.analysis.observer import Wanted
from megasink.analysis.source import find_source, load_subject, untrained_subject
from megasink.errors import UserError
from tests.analysis.runs import write_run
from tests.helpers.tiny import tiny_config

CPU = torch.device("cpu")


def forward(subject):
    samples = np.random.default_rng(0).integers(91, size=(3, 25))
    return measure(subject, samples, 20, lambda tokens: None, "forward", wanted=Wanted((0, "auto")))


def assert_same(first, second) -> None:
    assert first.report.arrays.keys() == second.report.arrays.keys()
    for name, array in first.report.arrays.items():
        np.testing.assert_allclose(second.report[name], array, rtol=1e-6, atol=1e-9, err_msg=name)
    assert first.loss == pytest.approx(second.loss, rel=1e-6)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("v_scale", ["off", "on"])
def test_trained_and_untrained_figures_are_those_of_the_whole_model(tmp_path, v_scale, tied):
    config = tiny_config(v_scale=v_scale, untie_embeddings_and_output_weights=not tied)
    source = find_source(write_run(tmp_path / "run", config))
    assert_same(*(forward(load_subject(source, CPU, stream)) for stream in (False, True)))
    for kept in (True, False):
        assert_same(*(forward(untrained_subject(source, CPU, stream, kept)[0]) for stream in (False, True)))


def test_no_more_than_one_block_is_there_at_a_time(tmp_path):
    subject = load_subject(find_source(write_run(tmp_path / "run", tiny_config(num_layers=5))), CPU, stream=True)
    held = []

    def count(*_) -> None:
        held.append(sum(not next(block.parameters()).is_meta for block in subject.blocks))

    for block in subject.blocks:
        block.mlp.register_forward_hook(count)
    forward(subject)
    count()
    assert held == [1] * 5 + [0]


def test_nan_weights_are_seen_while_streaming(tmp_path):
    from safetensors.torch import load_file, save_file

    source = find_source(write_run(tmp_path / "run", tiny_config()))
    weights = load_file(source.folder / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"][3, 4] = float("inf")
    save_file(weights, source.folder / "model.safetensors")
    with pytest.raises(UserError, match=r"layers\.2\.mlp\.up_proj\.weight holds NaN or infinity"):
        forward(load_subject(source, CPU, stream=True))
