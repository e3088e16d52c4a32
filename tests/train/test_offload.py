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


OFFLOAD = '{"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}%s}'
"""Without `zero_force_ds_cpu_optimizer` DeepSpeed takes no optimizer but its own."""


@pytest.mark.parametrize(
    "settings, flags, refused",
    [
        (OFFLOAD % ', "zero_force_ds_cpu_optimizer": false', ("--cuda-graph",), "--cuda-graph needs the optimizer on"),
        (OFFLOAD % "", (), "DeepSpeed refuses it (You are using ZeRO-Offload with a client provided optimizer"),
        ('{"zero_optimization": {"stage": 1, "overlap_comm": "often"}}', (), "DeepSpeed refuses it (1 validation"),
        ('{"zero_optimization": {"stage": 1}, "managed_gradient_accumulation": false}', (), "DeepSpeed refuses it ("),
    ],
)
def test_settings_that_cannot_be_used_are_refused_in_one_line(settings, flags, refused, tokens, tmp_path):
    file = tmp_path / "settings.json"
    file.write_text(settings)
    flags = [*flags, "--data-path", tokens, "--precision", "bf16", "--save", tmp_path / "run", "--train-iters", 1]
    outcome = train(*flags, "--deepspeed-config", file, ranks=2, expect=2)
    said = outcome.lines("megasink:")
    assert len(said) == 1 and refused in said[0] and "Traceback" not in outcome.output, outcome.output
