"""The planner's peak memory against what was measured on a GPU, and its parts against each other."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from megasink.config import RunConfig
from megasink.config.cli import load_yaml
from megasink.model.llama import stage_blocks
from megasink.plan.memory import stage_memory
from tests.plan.runs import run_of

ROOT = Path(__file__).parents[2]


def test_the_measured_peak_of_an_h100_is_met():
    """docs/results: 1.2B, micro-batch 8, V-scale, with light statistics, which a plan leaves out."""
    measured = json.loads((ROOT / "docs/results/profile_1b_light.json").read_text())["peak_gib"]
    config = load_yaml(RunConfig, ROOT / "examples" / "pretrain_1b.yaml")
    config.model.vocab_size, config.model.v_scale = 32000, "on"
    config.training.micro_batch_size = config.training.global_batch_size = 8
    (memory,) = stage_memory(config, replicas=1, compiled=True)
    assert memory.total / 2**30 == pytest.approx(measured, rel=0.02)


def test_the_measured_peak_of_an_h200_without_v_scale_is_met():
    """Of the run with all peers: the compiled path keeps no packed query-key-value product."""
    rows = json.loads((ROOT / "docs/results/h200/throughput_accumulate4_all.json").read_text())["rows"]
    (measured,) = (row["peak_gib"] for row in rows if row["case"] == "megasink-plain")
    config = load_yaml(RunConfig, ROOT / "examples" / "pretrain_1b.yaml")
    config.model.vocab_size = 32000
    config.training.micro_batch_size, config.training.global_batch_size = 8, 32
    (memory,) = stage_memory(config, replicas=1, compiled=True)
    assert memory.total / 2**30 == pytest.approx(measured, rel=0.01)


def test_early_stages_hold_more_micro_batches():
    config = run_of("plain", "pp3", global_batch_size=16)
    stages = stage_memory(config, replicas=1, compiled=True)
    blocks = stage_blocks(config.model, config.parallel)
    per_block = [memory.activations / count for memory, count in zip(stages, blocks, strict=True)]
    assert per_block[0] > per_block[1] > per_block[2]
    assert (stages[0].logits, stages[1].logits) == (0, 0) and stages[2].logits > 0


@pytest.mark.parametrize("less", ["selective", "full"])
def test_recomputation_keeps_less(less):
    config = run_of("gqa_v_scale", "one")
    recomputing = replace(config, parallel=replace(config.parallel, recompute=less))
    (none,), (some,) = stage_memory(config, 1, True), stage_memory(recomputing, 1, True)
    assert some.activations < none.activations and some.weights == none.weights


def test_zero_cuts_over_replicas():
    config = run_of("plain", "one")
    totals = []
    for zero in (1, 2, 3):
        cut = replace(config, parallel=replace(config.parallel, zero_stage=zero))
        (memory,) = stage_memory(cut, replicas=8, compiled=True)
        totals.append(memory.weights + memory.gradients + memory.optimizer)
    assert totals[0] > totals[1] > totals[2]
