"""Combinations that cannot work are refused before anything starts, and the line names the flag."""

import pytest

from megasink.config import RunConfig
from megasink.config.checks import check_run
from megasink.config.cli import parse_cli
from megasink.errors import UserError


def checked(flags: str, world_size: int = 4) -> RunConfig:
    config = parse_cli(RunConfig, f"--save runs/x {flags}".split())
    check_run(config, world_size)
    return config


def test_a_sound_layout_passes():
    checked("--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 --sequence-parallel", 4)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("--tensor-model-parallel-size 3", "4 ranks were started"),
        ("--tensor-model-parallel-size 4 --num-attention-heads 6 --hidden-size 768", "--num-attention-heads 6"),
        ("--num-attention-heads 6 --hidden-size 768 --num-query-groups 4", "--num-query-groups 4"),
        ("--hidden-size 100", "--hidden-size 100"),
        ("--head-dim 33", "--head-dim 33"),
        ("--init-method-std 0", "--init-method-std 0"),
        ("--embedding-init-method-std -1", "--embedding-init-method-std -1"),
        ("--tensor-model-parallel-size 4 --ffn-hidden-size 8190", "--ffn-hidden-size 8190"),
        ("--sequence-parallel", "--sequence-parallel"),
        ("--tensor-model-parallel-size 4 --sequence-parallel --seq-length 2047", "--seq-length 2047"),
        ("--zero-stage 4", "--zero-stage 4"),
        ("--zero-stage 2 --pipeline-model-parallel-size 2", "--zero-stage 2"),
        ("--pipeline-model-parallel-size 4 --num-layers 2", "--num-layers 2"),
        ("--pipeline-model-parallel-size 2 --pipeline-split 8,7", "--pipeline-split 8,7"),
        ("--pipeline-model-parallel-size 2 --pipeline-split 16,0", "--pipeline-split 16,0"),
        ("--pipeline-model-parallel-size 2 --pipeline-split 4,4,8", "--pipeline-split 4,4,8"),
        ("--pipeline-model-parallel-size 2 --pipeline-split some", "--pipeline-split some"),
        ("--context-parallel-size 3", "--context-parallel-size 3"),
        ("--context-parallel-size 4 --num-attention-heads 6 --hidden-size 768", "6 query heads"),
        ("--context-parallel-size 4 --num-attention-heads 24 --head-dim 64 --num-query-groups 6", "6 key-value heads"),
        ("--context-parallel-size 4 --seq-length 2046", "--seq-length 2046"),
        (
            "--tensor-model-parallel-size 4 --num-query-groups 6 --num-attention-heads 24 --head-dim 64",
            "query-groups 6",
        ),
        ("--tensor-model-parallel-size 4 --make-vocab-size-divisible-by 2", "--make-vocab-size-divisible-by 2"),
        ("--check-replicas -1", "--check-replicas -1"),
        ("--global-batch-size 6", "--global-batch-size 6"),
        ("--min-lr 1", "--min-lr"),
        ("--lr-warmup-iters 2000", "--lr-warmup-iters 2000"),
        ("--sink-stats-interval 1 --seq-length 8", "--seq-length 8"),
        ("--train-iters 0", "--train-iters 0"),
        ("--weight-decay -1", "--weight-decay"),
        ("--num-attention-heads 0", "--num-attention-heads 0"),
        ("--num-layers 99999999", "--num-layers 99999999: must be at most"),
        ("--hidden-size 8192000 --ffn-hidden-size 8192000", "--hidden-size 8192000"),
        ("--ffn-hidden-size 1000000000000", "9.8e+16 parameters"),
        ("--vocab-size 999999999999", "--vocab-size 999999999999"),
        ("--head-dim 0", "--head-dim 0"),
        ("--adam-beta1 1", "--adam-beta1 1"),
        ("--adam-eps -1", "--adam-eps -1"),
        ("--lr nan", "--lr nan"),
        ("--clip-grad inf", "--clip-grad inf"),
        ("--rotary-base 0", "--rotary-base 0"),
        ("--rotary-scaling-factor 2 --rotary-scaling-low-freq-factor 4", "--rotary-scaling-low-freq-factor 4"),
        ("--exit-duration-in-mins -1", "--exit-duration-in-mins -1"),
        ("--step-timeout-in-mins 1e30", "--step-timeout-in-mins 1e+30"),
        ("--load=", "--load is empty"),
        ("--load runs/x --auto-resume", "--load"),
        ("--fp8 hybrid --precision fp32", "--precision bf16"),
        ("--fp8 hybrid --hidden-size 1032 --head-dim 64", "--hidden-size 1032"),
        ("--fp8 e4m3 --tensor-model-parallel-size 4 --ffn-hidden-size 96", "--ffn-hidden-size 96"),
        ("--fp8 hybrid --tensor-model-parallel-size 2 --num-attention-heads 2 --head-dim 24", "query heads"),
        ("--fp8 hybrid --num-query-groups 1 --head-dim 8", "key-value heads"),
        ("--fp8 hybrid --seq-length 1000", "--seq-length 1000"),
        ("--cuda-graph --tensor-model-parallel-size 2", "2 ranks share a micro-batch"),
        ("--cuda-graph --precision fp32", "not with fp32 and ZeRO-1"),
        ("--cuda-graph --zero-stage 2", "not with bf16 and ZeRO-2"),
        ("--cuda-graph --reset-position-ids", "depend on its documents"),
    ],
)
def test_an_impossible_combination_names_its_flag(flags, names):
    with pytest.raises(UserError) as error:
        checked(flags)
    assert names in str(error.value) and "\n" not in str(error.value)


def test_the_largest_models_that_were_ever_trained_pass():
    shape = "--num-layers 120 --hidden-size 25600 --ffn-hidden-size 102400 --num-attention-heads 160"
    checked(f"{shape} --vocab-size 256000 --global-batch-size 4")


def test_fp8_is_off_unless_asked_for():
    assert checked("").training.fp8 == "off"
    assert checked("--fp8 hybrid --tensor-model-parallel-size 2").training.fp8 == "hybrid"


def test_a_run_needs_a_folder():
    with pytest.raises(UserError, match="--save"):
        check_run(parse_cli(RunConfig, []), 1)


@pytest.mark.parametrize(
    "flags, first, levels",
    [
        ("--sink-stats off", 0, [None]),
        ("--sink-stats light --sink-stats-interval 1", 0, ["light"]),
        ("--sink-stats full --sink-stats-interval 4 --sink-stats-full-interval 6", 0, ["full", None, "light"]),
        ("--sink-stats full --sink-stats-interval 4 --sink-stats-full-interval 6", 7, [None, "light"]),
    ],
)
def test_levels_of_statistics_are_those_of_the_steps_to_come(flags, first, levels):
    """Of ten steps."""
    assert checked(flags).sink_stats.levels(first, 10) == levels
