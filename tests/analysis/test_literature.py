"""Equal to what two papers define, written down again from their texts and applied to transformers' own outputs."""

import numpy as np
import torch

from megasink.analysis.measure import measure
from megasink.analysis.observer import Wanted
from megasink.analysis.source import find_source, load_subject
from tests.analysis.test_families import saved

V, T, S = 61, 72, 4


def outputs(folder, text: np.ndarray):
    """Attention matrices [S, N, T, T] and hidden states [S, T, H] after each layer, by eager transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    states = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _module, _args, output: states.append(output))
    with torch.no_grad():
        out = model(torch.from_numpy(text[:, :-1]), output_attentions=True, use_cache=False)
    return [weights.numpy() for weights in out.attentions], [state.numpy() for state in states]


def model_with_sinks(folder):
    """A random Llama whose first token is a massive activation that queries look at."""
    from safetensors.torch import load_file, save_file

    saved(folder, "llama", attention_bias=False, max_position_embeddings=128)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][0] *= 30
    weights["model.layers.0.mlp.down_proj.weight"][5] *= 400
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_gu_et_al(tmp_path):
    """When Attention Sink Emerges (2410.10781): alpha_k^{l,h} = 1/(T-k) sum_{i>=k} A_{i,k}; Sink_k^eps is the mean over
    layers and heads of 1(alpha_k > eps), averaged over the sampled sequences; T = 64."""
    folder = model_with_sinks(tmp_path / "llama")
    text = np.random.default_rng(0).integers(1, V, size=(S, T + 1))
    text[:, 0] = 0
    attentions, _ = outputs(folder, text)
    thresholds = (0.02, 0.05, 0.3)
    result = measure(
        load_subject(find_source(folder), torch.device("cpu")),
        text,
        None,
        lambda tokens: None,
        "forward",
        wanted=Wanted((0,), thresholds),
    )
    for e, eps in enumerate(thresholds):
        for k in (0, 1, 5, 40):
            indicators = []
            for sample in range(S):
                for weights in attentions:
                    for head in range(weights.shape[1]):
                        alpha = sum(weights[sample, head, i, k] for i in range(k, 64)) / (64 - k)
                        indicators.append(alpha > eps)
            found = result.report["gu_sink_by_threshold"][:, :, e, k].mean()
            assert found == np.mean(indicators), (eps, k)
    assert 0 < result.report["gu_sink_by_threshold"][:, :, 1].mean() < 1


def test_sun_et_al(tmp_path):
    """Massive Activations (2402.17762): an activation is massive if its magnitude is above 100 and at least (here:
    above) about 1,000 times the median magnitude of its hidden state; the figures show the top three and the median."""
    folder = model_with_sinks(tmp_path / "llama")
    text = np.random.default_rng(0).integers(1, V, size=(S, T + 1))
    text[:, 0] = 0
    _, states = outputs(folder, text)
    result = measure(
        load_subject(find_source(folder), torch.device("cpu")), text, None, lambda tokens: None, wanted=Wanted()
    )
    report = result.report
    for layer, hidden in enumerate(states):
        massive = 0
        for sample in range(S):
            magnitude = np.abs(hidden[sample])
            largest = np.sort(magnitude, axis=None)[::-1][:3]
            found = [report[f"hidden_by_sequence_top{rank}"][layer, sample] for rank in (1, 2, 3)]
            np.testing.assert_allclose(found, largest, rtol=1e-4)
            median = np.median(magnitude)
            np.testing.assert_allclose(report["hidden_by_sequence_median"][layer, sample], median, rtol=1e-4)
            massive += int(((magnitude > 100) & (magnitude > 1000 * median)).sum())
        assert report["hidden_massive_count"][layer] == massive
    assert report["hidden_massive_count"].sum() > 0
