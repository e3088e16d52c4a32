"""The model against transformers' Llama with our weights, and initial weights that ignore the layout."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from megasink.checkpoint.weights import gather_weights
from megasink.model.llama import Llama, token_losses
from megasink.parallel.layout import Axis, ParallelLayout
from tests.helpers.tiny import tiny_batch, tiny_config


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_query_groups": None}, {"untie_embeddings_and_output_weights": False, "norm_epsilon": 1e-6}],
    ids=["gqa", "mha", "tied"],
)
def test_logits_and_loss_equal_transformers(changes):
    """RoPE layout, head order, epsilon, padding of the vocabulary: any of them wrong moves the logits."""
    config = tiny_config(**changes)
    model = Llama(config, seed=3)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.ffn_hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.kv_channels,
            rms_norm_eps=config.norm_epsilon,
            tie_word_embeddings=not config.untie_embeddings_and_output_weights,
        )
    )
    missing, unexpected = theirs.load_state_dict(gather_weights(model, config, ParallelLayout()), strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    theirs.tie_weights()
    tokens, labels = tiny_batch(config)
    with torch.no_grad():
        logits = model(tokens)
        expected = theirs(tokens).logits
        losses = token_losses(logits, labels, config, ParallelLayout())
    torch.testing.assert_close(logits[..., : config.vocab_size], expected, rtol=1e-5, atol=1e-5)
    reference = torch.nn.functional.cross_entropy(expected.transpose(1, 2), labels, reduction="none")
    torch.testing.assert_close(losses, reference, rtol=1e-5, atol=1e-5)


def test_initial_weights_do_not_depend_on_the_layout():
    """Each rank's slice of a layout is that slice of the single-process weights."""
    config = tiny_config(v_scale="on")
    whole = dict(Llama(config, seed=5).named_parameters())
    for rank in range(2):
        layout = ParallelLayout(tensor=Axis(size=2, rank=rank))
        for name, parameter in Llama(config, layout, seed=5).named_parameters():
            assert torch.equal(parameter, parameter.shard.take(whole[name])), name


def test_initial_weights_differ_between_seeds_and_layers():
    config = tiny_config()
    first, second = (dict(Llama(config, seed=seed).named_parameters()) for seed in (1, 2))
    assert not torch.equal(first["1.mlp.up_proj.weight"], second["1.mlp.up_proj.weight"])
    assert not torch.equal(first["1.mlp.up_proj.weight"], first["2.mlp.up_proj.weight"])
    assert first["1.mlp.up_proj.weight"].std().item() == pytest.approx(config.init_method_std, rel=0.05)


@pytest.mark.parametrize("untied", [True, False])
def test_the_embedding_can_start_wider_than_the_rest(untied):
    config = tiny_config(embedding_init_method_std=1.0, untie_embeddings_and_output_weights=untied)
    spread = {name: p.std().item() for name, p in Llama(config, seed=1).named_parameters() if p.dim() == 2}
    embedding = "0.weight" if untied else "tied_modules.embed.weight"
    rows = config.vocab_size / config.padded_vocab_size  # the padding is 0
    assert spread.pop(embedding) == pytest.approx(rows**0.5, rel=0.05)
    assert all(value == pytest.approx(config.init_method_std, rel=0.15) for value in spread.values())
