"""The recorder on models that are not ours: a plain transformers Llama, one with V-scale, a list of other blocks."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from megasink.checkpoint.modeling_megasink import MegasinkLlamaConfig, MegasinkLlamaForCausalLM
from megasink.config import ModelConfig
from megasink.stats.attach import BlockNames, attach, attach_blocks
from tests.stats.expected import expected_report
from tests.stats.test_against_reference import FROM_HISTOGRAM, HALF_BIN

SIGMA = 0.2


def hugging_face_llama(v_scale: bool, tied: bool = False, **changes):
    shape = dict(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        rms_norm_eps=1e-5,
        initializer_range=SIGMA,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=tied,
        v_scale_initial_c=32 * 12 * SIGMA**2,
    )
    torch.manual_seed(0)
    from transformers import LlamaConfig, LlamaForCausalLM

    if not v_scale:
        return LlamaForCausalLM(LlamaConfig(**shape | changes))
    model = MegasinkLlamaForCausalLM(MegasinkLlamaConfig(**shape | changes))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.v_scale.theta.uniform_(-1.0, 1.0)
    return model


@pytest.mark.parametrize(("v_scale", "tied"), [(False, False), (True, True)])
def test_transformers_llama_equals_the_reference(v_scale, tied):
    """In fp32, since transformers computes RoPE and softmax in it anyway."""
    model = hugging_face_llama(v_scale, tied)
    tokens = torch.randint(61, (2, 70), generator=torch.Generator().manual_seed(1))
    labels = tokens.roll(-1, dims=1)
    labels[:, -1] = -100
    labels[0, :30] = -100
    with attach(model) as recorder:
        recorder.start("full")
        logits = model(input_ids=tokens).logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        report = recorder.report(step=0)
    expected = expected_report(recorder.config, model.state_dict(), tokens, labels)
    assert set(report.arrays) == set(expected)
    for name, array in expected.items():
        tolerance = HALF_BIN if name.endswith(FROM_HISTOGRAM) else 2e-4
        scale = np.nanmax(np.abs(array), initial=0.0)
        np.testing.assert_allclose(report[name], array, rtol=tolerance, atol=1e-5 * scale, err_msg=name)


def test_the_model_is_as_it_was_afterwards():
    model = hugging_face_llama(False)
    tokens = torch.randint(61, (1, 20))
    before = model(input_ids=tokens).logits
    with attach(model) as recorder:
        recorder.start("light")
        recorded = model(input_ids=tokens, labels=tokens)
        recorded.loss.backward()
        recorder.report(step=0)
    torch.testing.assert_close(recorded.logits, before, rtol=1e-5, atol=1e-5)
    after = model(input_ids=tokens)
    assert torch.equal(after.logits, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all("forward" not in vars(module) for module in model.modules())


def test_padding_and_other_attention_are_refused():
    tokens = torch.randint(61, (1, 20))
    padded = torch.ones_like(tokens)
    padded[:, :4] = 0
    model = hugging_face_llama(False)
    with attach(model) as recorder:
        recorder.start("light")
        with pytest.raises(ValueError, match="without padding"):
            model(input_ids=tokens, attention_mask=padded)
    model.set_attn_implementation("eager")
    with attach(model) as recorder:
        recorder.start("light")
        with pytest.raises(ValueError, match="attn_implementation='sdpa'"):
            model(input_ids=tokens)


class OtherBlock(nn.Module):
    """A block with names of its own."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attn = OtherAttention(width, heads)
        self.ffn = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class OtherAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        q, k, v = (w(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        return self.wo(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


def test_models_with_and_without_v_scale_share_a_config():
    config = ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=4, num_query_groups=2, head_dim=12)
    found = [attach_blocks(hugging_face_llama(v_scale).model.layers, config).config for v_scale in (True, False)]
    assert [each.v_scale for each in found] == ["on", "off"]
    assert found[0].init_method_std == pytest.approx(SIGMA) and found[1].init_method_std == config.init_method_std


def test_any_list_of_blocks():
    torch.manual_seed(0)
    blocks = nn.ModuleList([OtherBlock(24, 3) for _ in range(2)]).double()
    names = BlockNames(
        attention_norm="norm1",
        attention="attn",
        query="attn.wq",
        key="attn.wk",
        value="attn.wv",
        mlp_norm="norm2",
        mlp="ffn",
    )
    config = ModelConfig(num_layers=2, hidden_size=24, num_attention_heads=3)
    x = torch.randn(2, 20, 24, dtype=torch.float64, requires_grad=True)
    with attach_blocks(blocks, config, names) as recorder:
        recorder.start("full")
        states, kept = x, []
        for block in blocks:
            states = block(states)
            kept.append(states)
        gradient = torch.autograd.grad(states.square().sum(), [x, *kept], retain_graph=True)
        states.square().sum().backward()
        report = recorder.report(step=0)
    outputs = torch.stack(kept).detach()
    np.testing.assert_allclose(report["hidden_norm"][:, 3], outputs[:, :, 3].norm(dim=-1).mean(dim=-1))
    g1 = torch.stack(gradient[1:])[:, :, 3].norm(dim=-1).mean(dim=-1)
    np.testing.assert_allclose(report["mlp_g1_norm"][:, 3], g1)
    sums = sum(report[f"attention_g2_{path}_share"] for path in ("query", "key", "value"))
    np.testing.assert_allclose(sums, 1.0)
