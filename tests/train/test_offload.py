"""An optimizer in host memory computes the same steps."""

import pytest

from tests.helpers.jobs import ROOT, losses, train, write_tokens


@pytest.mark.parametrize("stage", [2, 3])
def test_offload_gives_the_losses_of_the_same_stage_without(stage, tmp_path):
    flags = [
        "--data-path",
        write_tokens(tmp_path / "tokens"),
        "--train-iters",
        4,
        "--zero-stage",
        stage,
        "--precision",
        "bf16",
    ]
    train(*flags, "--save", tmp_path / "plain", ranks=2)
    settings = ROOT / "ds_configs" / f"zero{stage}_offload.json"
    train(*flags, "--save", tmp_path / "offload", "--deepspeed-config", settings, ranks=2)
    assert losses(tmp_path / "plain") == losses(tmp_path / "offload")


def test_graphs_are_refused_where_the_optimizer_is_not_on_the_gpu(tmp_path):
    settings = tmp_path / "offload.json"
    settings.write_text('{"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}}')
    flags = ["--data-path", write_tokens(tmp_path / "tokens"), "--precision", "bf16", "--save", tmp_path / "run"]
    outcome = train(*flags, "--deepspeed-config", settings, "--cuda-graph", expect=2)
    assert len(outcome.lines("megasink: --cuda-graph needs the optimizer on the GPU")) == 1
