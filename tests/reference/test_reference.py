"""The reference itself is checked against transformers, autograd, finite differences and closed forms."""

import math

import numpy as np
import pytest
import torch

from tests.reference.llama import ReferenceConfig, forward, v_scale
from tests.reference.sink_stats import by_position, gradient_sinks, gu_sink, sink_statistics

VOCABULARY = 53


def make_weights(config: ReferenceConfig, ffn: int = 40, tied: bool = False, seed: int = 0, std: float = 0.3) -> dict:
    """Random float64 weights with Hugging Face names; theta and the norms are random too, so nothing is trivially 1."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * std

    h, d = config.hidden_size, config.head_dim
    n, k = config.num_attention_heads, config.num_key_value_heads
    weights = {"model.embed_tokens.weight": normal(VOCABULARY, h), "model.norm.weight": 1 + normal(h)}
    if not tied:
        weights["lm_head.weight"] = normal(VOCABULARY, h)
    for i in range(config.num_layers):
        layer = {
            "self_attn.q_proj.weight": normal(n * d, h),
            "self_attn.k_proj.weight": normal(k * d, h),
            "self_attn.v_proj.weight": normal(k * d, h),
            "self_attn.o_proj.weight": normal(h, n * d),
            "input_layernorm.weight": 1 + normal(h),
            "post_attention_layernorm.weight": 1 + normal(h),
            "mlp.gate_proj.weight": normal(ffn, h),
            "mlp.up_proj.weight": normal(ffn, h),
            "mlp.down_proj.weight": normal(h, ffn),
        }
        if config.v_scale == "on":
            layer["self_attn.v_scale.theta"] = normal(k)
        weights |= {f"model.layers.{i}.{name}": w for name, w in layer.items()}
    return weights


def make_config(mode: str = "off", heads: int = 4, kv_heads: int = 2, head_dim: int = 6, layers: int = 2):
    """head_dim is not hidden_size / heads, on purpose."""
    return ReferenceConfig(layers, 16, heads, kv_heads, head_dim, 1000.0, 1e-5, mode, 0.3)


def make_batch(sequences: int = 2, length: int = 20, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens, labels = torch.randint(VOCABULARY, (2, sequences, length), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = -100
    return tokens, labels


@pytest.mark.parametrize(("kv_heads", "tied"), [(4, False), (2, True), (1, False)])
def test_logits_and_loss_equal_transformers(kv_heads, tied):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = make_config(kv_heads=kv_heads)
    weights = make_weights(config, tied=tied)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=config.hidden_size,
            intermediate_size=40,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=kv_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.norm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": config.rotary_base},
            tie_word_embeddings=tied,
            attn_implementation="eager",
        )
    ).double()
    missing = theirs.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"lm_head.weight"}
    theirs.tie_weights()
    tokens, labels = make_batch()
    expected = theirs(tokens).logits
    ours = forward(weights, config, tokens, labels)
    # transformers computes RoPE's angles and the softmax in float32 even in a float64 model.
    torch.testing.assert_close(ours.logits, expected, rtol=1e-5, atol=1e-5)
    loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), labels.flatten(), ignore_index=-100)
    torch.testing.assert_close(ours.loss, loss, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", ["on", "backward-only"])
def test_v_scale_has_the_papers_jacobian(mode):
    hidden_size, sigma, d = 16, 0.3, 6
    v = torch.randn(d, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    theta = torch.tensor([0.4 if mode == "on" else 0.0], dtype=torch.float64)
    c = hidden_size * d * sigma**2 * math.exp(theta)
    r = float(v @ v)
    closed = r / (r + c) * torch.eye(d, dtype=torch.float64) + 2 * c / (r + c) ** 2 * torch.outer(v, v)
    found = torch.autograd.functional.jacobian(lambda x: v_scale(x[None], theta, hidden_size, sigma, mode)[0], v)
    torch.testing.assert_close(found, closed, rtol=1e-12, atol=1e-14)
    out = v_scale(v[None], theta, hidden_size, sigma, mode)[0]
    torch.testing.assert_close(out, v if mode == "backward-only" else r / (r + c) * v, rtol=0, atol=0)


def test_v_scale_theta_gradient_is_the_closed_form():
    generator = torch.Generator().manual_seed(2)
    v, g = torch.randn(2, 5, 3, 6, generator=generator, dtype=torch.float64)
    theta = torch.randn(3, generator=generator, dtype=torch.float64).requires_grad_(True)
    (v_scale(v, theta, 16, 0.3, "on") * g).sum().backward()
    r = (v * v).sum(-1)
    phi = r / (r + 16 * 6 * 0.3**2 * theta.detach().exp())
    torch.testing.assert_close(theta.grad, -(phi * (1 - phi) * (g * v).sum(-1)).sum(0))


@pytest.mark.parametrize("name", ["self_attn.v_proj.weight", "self_attn.v_scale.theta", "input_layernorm.weight"])
def test_gradient_equals_finite_differences(name):
    config = make_config("on")
    weights = make_weights(config)
    tokens, labels = make_batch()
    name = f"model.layers.0.{name}"
    weights[name].requires_grad_(True)
    (gradient,) = torch.autograd.grad(forward(weights, config, tokens, labels).loss, weights[name])
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    losses = []
    for sign in (1, -1):
        moved = weights | {name: weights[name].detach() + sign * 1e-5 * direction}
        losses.append(forward(moved, config, tokens, labels).loss)
    torch.testing.assert_close((losses[0] - losses[1]) / 2e-5, (gradient * direction).sum(), rtol=1e-6, atol=1e-9)


def test_packed_documents_equal_the_documents_alone():
    config = make_config("on")
    weights = make_weights(config)
    tokens, labels = make_batch(sequences=1, length=20)
    labels = torch.where(labels == -100, 0, labels)
    packed = sink_statistics(weights, config, tokens, labels, [[0, 7, 8]], gu_length=6)
    pieces = [slice(0, 7), slice(7, 8), slice(8, 20)]
    for x, piece in enumerate(pieces):
        alone = sink_statistics(weights, config, tokens[:, piece], labels[:, piece], gu_length=6)
        share = (piece.stop - piece.start) / 20  # of the targets, hence of the gradient
        for name in ("value_grad_norm", "query_grad_norm", "mlp_g2_norm", "attention_g3_norm"):
            torch.testing.assert_close(packed[name][..., piece], share * alone[name])
        for name in ("hidden_norm", "attention_entropy", "value_hat_norm", "attention_bloat", "attention_g2_key_share"):
            torch.testing.assert_close(packed[name][..., piece], alone[name])
        for name in ("gradient_sink_ratio_early", "gradient_sink_position", "value_drain", "hidden_t0_over_early"):
            torch.testing.assert_close(packed[name][..., x], alone[name][..., 0], equal_nan=True)
        for name in ("attention_sink_by_document", "attention_sink_value_by_document", "gu_alpha"):
            torch.testing.assert_close(packed[name][:, :, x], alone[name][:, :, 0], equal_nan=True)
    absolute = forward(weights, config, tokens, None, [[0, 7, 8]], reset_positions=False)
    relative = forward(weights, config, tokens, None, [[0, 7, 8]], reset_positions=True)
    torch.testing.assert_close(absolute.logits, relative.logits)  # RoPE only knows differences


def test_identities_between_statistics():
    config = make_config("on")
    weights = make_weights(config)
    tokens, labels = make_batch()
    stats = sink_statistics(weights, config, tokens, labels, gu_length=20)
    for name in ("query", "key", "value", "value_hat"):
        torch.testing.assert_close(stats[f"{name}_grad_norm"].square().sum(1).sqrt(), stats[f"{name}_grad_norm_all"])
    shares = sum(stats[f"attention_g2_{path}_share"] for path in ("query", "key", "value"))
    known = ~shares.isnan()  # the last layer's g2 is zero where nothing after the token has a target
    torch.testing.assert_close(shares[known], torch.ones_like(shares[known]))
    # V-scale never amplifies a gradient by more than 9/8 (arXiv 2603.17771), and shrinks this one overall.
    assert (stats["value_grad_norm"] <= 9 / 8 * stats["value_hat_grad_norm"] + 1e-15).all()
    torch.testing.assert_close(stats["attention_sink_by_document"].mean(-1), stats["attention_sink"])
    # alpha_0 also counts query 0, which can only look at itself
    expected = (19 * stats["attention_sink_by_document"] + 1) / 20
    torch.testing.assert_close(stats["gu_alpha"][..., 0], expected)
    slack = stats["attention_lse_max"] - stats["attention_logit_max"]
    assert ((slack >= 0) & (slack <= math.log(20))).all()
    assert stats["attention_entropy"][..., 0].abs().max() == 0
    assert gu_sink(stats["gu_alpha"]).shape == (16,)
    assert by_position(stats["hidden_norm"], stats["position"], 0, 1).shape == (2,)


@pytest.mark.parametrize(("length", "published"), [(64, 8), (256, 14)])
def test_gradient_sink_null_of_uniform_attention(length, published):
    """Independent gradients under uniform causal attention: |g2 at t|^2 = sum_{i>=t} |g_i|^2 / (i+1)^2 on average."""
    rng = np.random.default_rng(0)
    sequences, width = 64, 256
    uniform = np.tril(np.ones((length, length))) / np.arange(1, length + 1)[:, None]
    upstream = rng.standard_normal((sequences, length, width))
    g2_norm = np.linalg.norm(np.einsum("ij,sid->sjd", uniform, upstream), axis=-1)[None]
    found = gradient_sinks(g2_norm, [(s, 0, length) for s in range(sequences)])
    tails = [math.sqrt(sum(1 / (i + 1) ** 2 for i in range(t, length))) for t in range(length)]
    assert np.isclose(found["gradient_sink_ratio"].mean(), tails[0] / np.mean(tails[1:]), rtol=0.03)
    assert abs(found["gradient_sink_ratio"].mean() - published) < 1.0
    assert np.isclose(found["gradient_sink_ratio_early"].mean(), tails[0] / np.mean(tails[1:16]), rtol=0.03)


def test_untrained_attention_sink_is_its_null():
    """With keys of zero attention is uniform, so AS is (H_T - 1) / (T - 1) and R_GS is far above 1 without any sink."""
    config = make_config(layers=1)
    weights = make_weights(config)
    weights["model.layers.0.self_attn.k_proj.weight"].zero_()
    tokens, labels = make_batch(length=24)
    stats = sink_statistics(weights, config, tokens, labels, gu_length=24)
    null = (sum(1 / i for i in range(1, 25)) - 1) / 23
    torch.testing.assert_close(stats["attention_sink"], torch.full((1, 4), null, dtype=torch.float64))
    expected = torch.log(torch.arange(1, 25, dtype=torch.float64)).expand(1, 4, 2, 24)
    torch.testing.assert_close(stats["attention_entropy"], expected)
    assert (stats["attention_g2_query_norm"] == 0).all()
    assert (stats["gradient_sink_ratio"] > 2).all()
