"""Parameters by formula are those of the real model on the meta device, on every rank."""

import pytest

from megasink.model.flops import num_parameters
from megasink.plan.meta_model import meta_stage
from megasink.plan.parameters import parameter_sizes, stage_parameters
from tests.plan.runs import LAYOUTS, MODELS, run_of


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", MODELS)
def test_every_rank_holds_what_the_formula_says(model, layout):
    config = run_of(model, layout)
    for stage, planned in enumerate(stage_parameters(config.model, config.parallel)):
        for tensor_rank in {0, config.parallel.tensor_model_parallel_size - 1}:
            with meta_stage(config, stage, tensor_rank) as held:
                parameters = list(held.modules.named_parameters())
        sizes = parameter_sizes(config.model, config.parallel, stage)
        assert sorted(parameter.numel() for _, parameter in parameters) == sorted(sizes.elements())
        assert sum(parameter.numel() for _, parameter in parameters) == planned.total
        if config.parallel.tensor_model_parallel_size > 1:
            whole = sum(parameter.numel() for _, parameter in parameters if parameter.shard.dim is None)
            assert whole == planned.whole


@pytest.mark.parametrize("model", MODELS)
def test_all_ranks_together_hold_the_model(model):
    """Copies and the vocabulary's padding taken off."""
    config = run_of(model, "tp4_pp2_split")
    stages = stage_parameters(config.model, config.parallel)
    together = sum(4 * (stage.total - stage.whole) + stage.whole for stage in stages)
    padding = (config.model.padded_vocab_size - config.model.vocab_size) * config.model.hidden_size
    tables = 2  # embedding and output, or on two stages the tied one twice
    if not config.model.untie_embeddings_and_output_weights:
        together -= config.model.padded_vocab_size * config.model.hidden_size
        tables = 1
    assert together - tables * padding == num_parameters(config.model)
