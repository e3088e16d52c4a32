"""A whole run, through the command line, goes on under another layout; with packed documents kept apart."""

import shlex

import pytest

from tests.helpers.jobs import losses, train, write_tokens

FLAGS = shlex.split(
    """
    --reset-attention-mask --reset-position-ids --save-interval 3 --sink-stats-interval 2 --v-scale on
    --lr-decay-style constant --check-replicas 2 --adam-eps 1e-6 --make-vocab-size-divisible-by 32
    """
)


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> list:
    return ["--data-path", write_tokens(tmp_path_factory.mktemp("tokens") / "tiny"), *FLAGS]


def test_auto_resume_under_another_layout_continues_the_loss_curve(flags, tmp_path):
    train(*flags, "--save", tmp_path / "whole", "--train-iters", 6)
    moving = [*flags, "--save", tmp_path / "moving"]
    train(*moving, "--train-iters", 3, "--tensor-model-parallel-size", 2, "--sequence-parallel", ranks=2)
    second = train(
        *moving,
        "--train-iters",
        6,
        "--auto-resume",
        "--pipeline-model-parallel-size",
        2,
        "--recompute",
        "full",
        ranks=2,
    )
    assert second.lines("megasink: resuming after step 3"), second.output
    assert losses(tmp_path / "moving") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


def test_what_cannot_move_is_one_line(flags, tmp_path):
    save = [*flags, "--save", tmp_path / "run"]
    train(*save, "--train-iters", 1, "--zero-stage", 2)
    refused = train(*save, "--train-iters", 2, "--auto-resume", "--zero-stage", 3, expect=2)
    assert "ZeRO-2 optimizer state cannot become ZeRO-3's" in refused.lines("megasink: ")[-1]
    assert "Traceback" not in refused.output
