"""Every pair that does not work together has its line, and the documentation shows the same table."""

from pathlib import Path

import pytest

from megasink.config import RunConfig
from megasink.config.checks import check_run
from megasink.config.support import EXCLUSIONS, FEATURES, refusal, support_matrix
from megasink.errors import UserError

LAYOUTS_PAGE = Path(__file__).parents[2] / "docs" / "layouts.md"
CHOICES = {  # how each feature of the table is chosen
    "TP": ("parallel", "tensor_model_parallel_size", 2),
    "SP": ("parallel", "sequence_parallel", True),
    "PP": ("parallel", "pipeline_model_parallel_size", 2),
    "CP": ("parallel", "context_parallel_size", 2),
    "ZeRO-0": ("parallel", "zero_stage", 0),
    "ZeRO-1": ("parallel", "zero_stage", 1),
    "ZeRO-2": ("parallel", "zero_stage", 2),
    "ZeRO-3": ("parallel", "zero_stage", 3),
    "recompute": ("parallel", "recompute", "full"),
    "bf16": ("training", "precision", "bf16"),
    "documents": ("model", "reset_attention_mask", True),
    "statistics": ("sink_stats", "sink_stats", "light"),
    "replica check": ("parallel", "check_replicas", 10),
}


def run_with(*features: str) -> RunConfig:
    config = RunConfig()
    config.training.precision = "fp32"
    config.sink_stats.sink_stats = "off"
    config.checkpoint.save = "runs/x"
    for name in features:
        section, field, value = CHOICES[name]
        setattr(getattr(config, section), field, value)
    if "SP" in features:
        config.parallel.tensor_model_parallel_size = 2
    return config


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_each_feature_is_recognised(feature):
    assert feature.chosen(run_with(feature.name))
    config = run_with()
    config.parallel.zero_stage = 1 if feature.name == "ZeRO-0" else 0
    assert not feature.chosen(config)


@pytest.mark.parametrize("exclusion", EXCLUSIONS, ids=lambda exclusion: f"{exclusion.first} {exclusion.second}")
def test_each_excluded_pair_is_refused_in_one_line(exclusion):
    flags = {feature.name: feature.flag for feature in FEATURES}
    with pytest.raises(UserError) as caught:
        check_run(run_with(exclusion.first, exclusion.second), world_size=8)
    said = str(caught.value)
    assert flags[exclusion.first] in said and flags[exclusion.second] in said and exclusion.instead in said
    assert "\n" not in said


def test_every_other_pair_passes():
    excluded = {frozenset((exclusion.first, exclusion.second)) for exclusion in EXCLUSIONS}
    for first in FEATURES:
        for second in FEATURES:
            both_zero = first.name.startswith("ZeRO") and second.name.startswith("ZeRO")
            if frozenset((first.name, second.name)) not in excluded and not both_zero:
                assert refusal(run_with(first.name, second.name)) is None
                check_run(run_with(first.name, second.name), world_size=8)


def test_the_page_shows_the_table():
    """Regenerate with: python -m megasink.config.support"""
    assert support_matrix() in LAYOUTS_PAGE.read_text(encoding="utf-8")
