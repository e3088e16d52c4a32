"""Planted models: Llamas whose sinks, norms and gradients are known in closed form, through the whole command in fp32.

Every embedding is a one-hot vector of length sqrt(H), so RMSNorm leaves it as it is and each weight's effect can be
written down. The vocabulary takes the first V of H = 2 V dimensions; what is written goes to the other half.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from megasink.analysis.analyze import analyze
from megasink.analysis.request import AnalysisRequest
from megasink.checkpoint.weights import load_weights
from megasink.config import ModelConfig
from megasink.data import IndexedDatasetWriter
from megasink.model.llama import Llama
from tests.analysis.runs import write_checkpoint

V, H, HEADS, LENGTH = 32, 64, 4, 16
FIRST, SECOND = 1, 2  # tokens at positions 0 and 1 of every sequence, and nowhere else
NEVER = -60.0  # a logit that softmax turns into nothing
TOLERANCE = 1e-4


def blank(kv_heads: int, v_scale: str = "off") -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """A one-layer configuration and weights of zeros, but for norms of one and one-hot embeddings."""
    config = ModelConfig(
        num_layers=1,
        hidden_size=H,
        ffn_hidden_size=8,
        num_attention_heads=HEADS,
        num_query_groups=kv_heads,
        head_dim=V // kv_heads,
        vocab_size=V,
        make_vocab_size_divisible_by=1,
        seq_length=LENGTH,
        rotary_base=1e30,  # the slowest pair of dimensions does not turn at all
        norm_epsilon=1e-12,
        v_scale=v_scale,
    )
    width, groups = HEADS * config.kv_channels, kv_heads * config.kv_channels
    layer = {
        "self_attn.q_proj": (width, H),
        "self_attn.k_proj": (groups, H),
        "self_attn.v_proj": (groups, H),
        "self_attn.o_proj": (H, width),
        "mlp.gate_proj": (8, H),
        "mlp.up_proj": (8, H),
        "mlp.down_proj": (H, 8),
    }
    weights = {f"model.layers.0.{name}.weight": torch.zeros(shape) for name, shape in layer.items()}
    for name in ("model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm", "model.norm"):
        weights[f"{name}.weight"] = torch.ones(H)
    weights["model.embed_tokens.weight"] = math.sqrt(H) * torch.eye(V, H)
    weights["lm_head.weight"] = torch.zeros(V, H)
    return config, weights


def layer_weight(weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return weights[f"model.layers.0.{name}.weight"]


def save(folder: Path, form: str, config: ModelConfig, weights: dict[str, torch.Tensor]) -> Path:
    if form == "hugging_face":
        folder.mkdir()
        save_file(weights, folder / "model.safetensors")
        described = {
            "model_type": "llama",
            "num_hidden_layers": 1,
            "hidden_size": H,
            "intermediate_size": 8,
            "num_attention_heads": HEADS,
            "num_key_value_heads": config.num_key_value_heads,
            "head_dim": config.kv_channels,
            "vocab_size": V,
            "rms_norm_eps": config.norm_epsilon,
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_base},
        }
        if config.v_scale == "on":  # the form that tools/convert_ckpt.py exports
            described |= {
                "model_type": "megasink_llama",
                "initializer_range": config.init_method_std,
                "v_scale_initial_c": H * config.kv_channels * config.init_method_std**2,
            }
        (folder / "config.json").write_text(json.dumps(described))
        return folder
    source = folder / "source"
    source.mkdir(parents=True)
    save_file(weights, source / "model.safetensors")
    model = Llama(config)
    load_weights(model, config, source)
    return write_checkpoint(folder / "checkpoint", model, 7)


def sequences(count: int = 3) -> np.ndarray:
    """[count, LENGTH]: FIRST, SECOND, then different other tokens."""
    rng = np.random.default_rng(0)
    others = np.array([token for token in range(V) if token not in (FIRST, SECOND)])
    return np.array([[FIRST, SECOND, *rng.permutation(others)[: LENGTH - 2]] for _ in range(count)])


def analysed(tmp_path: Path, checkpoint: Path) -> dict[str, np.ndarray]:
    """What the command reports for one model on `sequences()`; figures by sequence are [S, L]."""
    with IndexedDatasetWriter(tmp_path / "text", V) as writer:
        writer.add_document([*sequences().reshape(-1), FIRST])
    request = AnalysisRequest(
        (str(checkpoint),),
        data=str(tmp_path / "text"),
        seq_length=str(LENGTH),
        out=str(tmp_path / "out"),
        device="cpu",
        figures="6",
    )
    analyze(request, "")
    (setting,) = json.loads((tmp_path / "out" / "metrics.json").read_text())["settings"]
    stored = setting["models"][0]["trained"]
    cut = setting["models"][0]["counterfactual"]["value_path_cut"]["arrays"]
    arrays = {name: np.array(array) for name, array in stored["arrays"].items()}
    prefix = f"{setting['name']}/{setting['models'][0]['label']}/trained/"
    with np.load(tmp_path / "out" / "by_sequence.npz") as found:
        by_sequence = {key.removeprefix(prefix): found[key] for key in found if key.startswith(prefix)}
    return by_sequence | arrays | {"loss": stored["loss"], "cut_g2": np.array(cut["attention_g2_norm"])}


@pytest.mark.parametrize("form", ["megasink", "hugging_face"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_sink_of_given_weight_and_activation_of_given_size(tmp_path, form, kv_heads):
    size, drained, others = 500.0, 0.25, 2.0
    config, weights = blank(kv_heads)
    still = config.kv_channels // 2 - 1  # the dimension that RoPE does not turn

    # Logits of the keys FIRST, SECOND and the rest, for a query of one
    logits = [(math.log(7 / 3), 0.0, NEVER), (NEVER, 0.0, NEVER)] * (kv_heads // 2)
    keys = layer_weight(weights, "self_attn.k_proj").view(kv_heads, config.kv_channels, H)
    for head, (first, second, rest) in enumerate(logits):
        keys[head, still, :V] = rest * math.sqrt(config.kv_channels / H)
        keys[head, still, FIRST] = first * math.sqrt(config.kv_channels / H)
        keys[head, still, SECOND] = second * math.sqrt(config.kv_channels / H)
    group = HEADS // kv_heads
    queries = layer_weight(weights, "self_attn.q_proj").view(HEADS, config.kv_channels, H)
    queries[0, still] = queries[group, still] = 1 / math.sqrt(H)  # the other heads look everywhere alike

    values = layer_weight(weights, "self_attn.v_proj").view(kv_heads, config.kv_channels, H)
    values[:, 0, :V] = others / math.sqrt(H)
    values[:, 0, FIRST] = drained / math.sqrt(H)

    layer_weight(weights, "mlp.gate_proj")[0, :V] = 40 / math.sqrt(H)  # silu(40) is 40
    layer_weight(weights, "mlp.up_proj")[0, FIRST] = 1 / math.sqrt(H)
    layer_weight(weights, "mlp.down_proj")[V, 0] = size / 40

    found = analysed(tmp_path, save(tmp_path / "model", form, config, weights))
    uniform = sum(1 / (i + 1) for i in range(1, LENGTH)) / (LENGTH - 1)
    expected = np.full((1, HEADS), uniform)
    expected[0, 0], expected[0, group] = 0.7, 0.0
    np.testing.assert_allclose(found["attention_sink"], expected, rtol=TOLERANCE, atol=1e-6)
    np.testing.assert_allclose(found["mlp_out_norm"][0, 0], size, rtol=TOLERANCE)
    np.testing.assert_allclose(found["mlp_out_norm"][0, 1:], 0, atol=1e-6)
    massive = math.sqrt(H + size**2)
    np.testing.assert_allclose(found["hidden_norm"][0, 0], massive, rtol=TOLERANCE)
    np.testing.assert_allclose(found["hidden_norm"][0, 1:], math.sqrt(H), rtol=TOLERANCE)
    np.testing.assert_allclose(found["hidden_t0_over_early"], massive / math.sqrt(H), rtol=TOLERANCE)
    np.testing.assert_allclose(found["value_norm"][0, :, 0], drained, rtol=TOLERANCE)
    np.testing.assert_allclose(found["value_norm"][0, :, 1:], others, rtol=TOLERANCE)
    np.testing.assert_allclose(found["loss"], math.log(V), rtol=TOLERANCE)  # the output layer is zero
    # the elements of x_out: `size` once, sqrt(H) for every token, zeros for the rest; massive, since 1000 x 0 is 0
    for name, value in (("top1", size), ("top2", math.sqrt(H)), ("median", 0.0), ("massive_count", 1)):
        np.testing.assert_allclose(found[f"hidden_by_sequence_{name}"], value, rtol=TOLERANCE, err_msg=name)
    assert (found["hidden_by_sequence_top1_position"] == 0).all() and (
        found["hidden_by_sequence_top1_channel"] == V
    ).all()
    alpha = (1 + 0.7 * (LENGTH - 1)) / LENGTH  # Gu et al. count the query at the key itself: above 0.3 and 0.2
    assert alpha > 0.3 and (found["gu_sink_by_threshold"][0, 0, :, 0] == 1).all()
    assert (found["gu_sink_by_threshold"][0, group, :, 0] == 0).all()


@pytest.mark.parametrize(
    ("form", "kv_heads", "v_scale"),
    [
        ("megasink", 4, "off"),
        ("megasink", 2, "off"),
        ("hugging_face", 4, "off"),
        ("hugging_face", 2, "off"),
        ("megasink", 4, "on"),
        ("megasink", 2, "on"),
        ("hugging_face", 2, "on"),
        ("megasink", 2, "backward-only"),
    ],
)
def test_gradients_of_uniform_attention(tmp_path, form, kv_heads, v_scale):
    """Queries and keys are zero, so all gradient takes the value path and each step of it is a known vector.

    Values are so small that attention writes next to nothing: then every token's logits are zero, and the gradient of
    token i's loss at the block's output is (1/V - one-hot of its label), in the half of the dimensions that is read.
    """
    config, weights = blank(kv_heads, v_scale)
    small, theta = 1e-5, 0.5
    width = config.kv_channels
    layer_weight(weights, "self_attn.v_proj")[:, :V] = small * torch.eye(V)
    output = layer_weight(weights, "self_attn.o_proj").view(H, kv_heads, HEADS // kv_heads, width)
    for head in range(kv_heads):  # what the query heads of one group read is the same: its mean
        part = slice(V + head * width, V + (head + 1) * width)
        output[part, head] = (torch.eye(width) * kv_heads / HEADS)[:, None, :]
    weights["lm_head.weight"][:, V:] = torch.eye(V)
    # V-scale's C at the size of the values, so that it neither passes nor drains everything
    c = (small**2 * H) * math.exp(theta if v_scale == "on" else 0.0)
    config.init_method_std = math.sqrt(small**2 / width)
    if v_scale == "on":
        weights["model.layers.0.self_attn.v_scale.theta"] = torch.full((kv_heads,), theta)

    found = analysed(tmp_path, save(tmp_path / "model", form, config, weights))
    tokens = sequences()
    labels = np.roll(tokens, -1, axis=1)  # the last label is the next sequence's FIRST
    at_output = (1 / V - np.eye(V)[labels]) / labels.size  # [S, T, V]; the final norm's Jacobian is 1 here
    uniform = np.tril(np.ones((LENGTH, LENGTH))) / np.arange(1, LENGTH + 1)[:, None]
    at_value_hat = np.einsum("it,siv->stv", uniform, at_output)
    values = small * math.sqrt(H) * np.eye(V)[tokens]
    at_value = jacobian(values.reshape(3, LENGTH, kv_heads, width), c, v_scale, at_value_hat)
    by_head = np.linalg.norm(at_value, axis=-1)  # [S, T, K]
    norm = np.sqrt((by_head**2).sum(axis=-1))
    g2 = small * norm
    np.testing.assert_allclose(found["value_grad_norm"][0], by_head.mean(axis=0).T, rtol=TOLERANCE)
    np.testing.assert_allclose(found["value_grad_norm_all"][0], norm.mean(axis=0), rtol=TOLERANCE)
    np.testing.assert_allclose(found["gradient_sink_ratio"][:, 0], g2[:, 0] / g2[:, 1:].mean(axis=1), rtol=TOLERANCE)
    np.testing.assert_allclose(found["gradient_sink_ratio_early"], found["gradient_sink_ratio"], rtol=TOLERANCE)
    shares = by_head[:, 0] ** 2 / norm[:, :1] ** 2
    np.testing.assert_allclose(found["value_path_share_by_head"][0], shares.mean(axis=0), rtol=TOLERANCE)
    np.testing.assert_allclose(found["cut_g2"], 0.0, atol=1e-12 * g2.max())  # keys and queries carry nothing
    if v_scale == "on":
        np.testing.assert_allclose(found["theta"], theta)
        np.testing.assert_allclose(found["v_scale_c"], c, rtol=TOLERANCE)


def jacobian(v: np.ndarray, c: float, v_scale: str, upstream: np.ndarray) -> np.ndarray:
    """V-scale's backward (arXiv 2603.17771): (phi I + 2 C / (r + C)^2 v v^T) g, head by head; [S, T, K, D]."""
    g = upstream.reshape(v.shape)
    if v_scale == "off":
        return g
    r = (v**2).sum(axis=-1, keepdims=True)
    return r / (r + c) * g + 2 * c / (r + c) ** 2 * (g * v).sum(axis=-1, keepdims=True) * v
