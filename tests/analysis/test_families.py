"""Models that transformers runs: the same figures as an independent calculation, and one line for what is not known."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from megasink.analysis.checks import check_model
from megasink.analysis.measure import measure
from megasink.analysis.observer import Wanted
from megasink.analysis.source import find_source, load_subject, untrained_subject
from megasink.errors import UserError

V, T = 61, 40
CPU = torch.device("cpu")
SHAPE = dict(
    vocab_size=V,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.2,
)
GPT2 = dict(vocab_size=V, n_embd=32, n_layer=3, n_head=4, n_positions=64, initializer_range=0.2)
SHAPES = {
    "llama": SHAPE | {"attention_bias": True},  # a Llama that our own does not know
    "mistral": SHAPE | {"sliding_window": 48},
    "qwen2": SHAPE,
    "qwen3": SHAPE | {"head_dim": 12, "tie_word_embeddings": True},
    "smollm3": SHAPE | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "gpt2": GPT2,
}
every_family = pytest.mark.parametrize("family", SHAPES)


def saved(folder, family: str, **changes):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SHAPES[family] | changes))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:  # norms and biases are not what they begin as
            parameter.data += 0.3 * torch.randn(parameter.shape)
        assert name
    model.save_pretrained(folder)
    return folder


def samples() -> np.ndarray:
    return np.random.default_rng(0).integers(V, size=(3, T + 1))


def naive(folder) -> dict[str, np.ndarray]:
    """From transformers' eager attention, its hidden states and autograd: nothing of megasink."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    stem = getattr(model, "model", None) or model.transformer
    blocks = stem.layers if hasattr(stem, "layers") else stem.h
    kept: dict[str, list] = {"hidden": [], "mlp": [], "norm": [], "value": []}

    def keep(name):
        def hook(_module, _args, output):
            output = output[0] if isinstance(output, tuple) else output
            output.retain_grad()
            kept[name].append(output)

        return hook

    for block in blocks:
        block.register_forward_hook(keep("hidden"))
        block.mlp.register_forward_hook(keep("mlp"))
        norm = getattr(block, "input_layernorm", None) or block.ln_1
        norm.register_forward_hook(keep("norm"))
        value = block.self_attn.v_proj if hasattr(block, "self_attn") else block.attn.c_attn
        value.register_forward_hook(keep("value"))
    text = torch.from_numpy(samples())
    out = model(input_ids=text[:, :-1], output_attentions=True, use_cache=False)
    loss = F.cross_entropy(out.logits.transpose(1, 2), text[:, 1:])
    loss.backward()
    if hasattr(blocks[0], "self_attn"):
        values = kept["value"]
        value_grads = [value.grad for value in values]
    else:
        values = [value.chunk(3, dim=-1)[2] for value in kept["value"]]
        value_grads = [value.grad.chunk(3, dim=-1)[2] for value in kept["value"]]
    heads = SHAPE["num_key_value_heads"] if hasattr(blocks[0], "self_attn") else GPT2["n_head"]
    g2 = torch.stack([norm.grad.norm(dim=-1) for norm in kept["norm"]])
    hidden = torch.stack([states.norm(dim=-1) for states in kept["hidden"]])
    figures = {
        "attention_sink": torch.stack([weights[:, :, 1:, 0].mean(dim=(0, 2)) for weights in out.attentions]),
        "gradient_sink_ratio": g2[:, :, 0] / g2[:, :, 1:].mean(dim=-1),
        "hidden_t0": hidden[:, :, 0].mean(dim=1),
        "hidden_t0_over_early": (hidden[:, :, 0] / hidden[:, :, 1:16].mean(dim=-1)).mean(dim=-1),
        "mlp_t0": torch.stack([states[:, 0].norm(dim=-1).mean() for states in kept["mlp"]]),
        "value_t0": torch.stack([v[:, 0].unflatten(-1, (heads, -1)).norm(dim=-1).mean(dim=0) for v in values]),
        "value_grad_t0": torch.stack([g[:, 0].norm(dim=-1).mean() for g in value_grads]),
        "loss": loss,
    }
    return {name: figure.detach().numpy() for name, figure in figures.items()}


@every_family
def test_equals_the_independent_calculation(tmp_path, family):
    source = find_source(saved(tmp_path / family, family))
    assert source.family == family
    subject = load_subject(source, CPU)
    result = measure(subject, samples(), None, lambda tokens: None, wanted=Wanted((0, "auto")))
    report, expected = result.report, naive(tmp_path / family)
    found = {
        "attention_sink": report["attention_sink"],
        "gradient_sink_ratio": report["gradient_sink_ratio"],
        "hidden_t0": report["hidden_norm"][:, 0],
        "hidden_t0_over_early": report["hidden_t0_over_early"],
        "mlp_t0": report["mlp_out_norm"][:, 0],
        "value_t0": report["value_norm"][:, :, 0],
        "value_grad_t0": report["value_grad_norm_all"][:, 0],
        "loss": result.loss,
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-7, err_msg=name)
    shares = report["value_path_share_by_head"].sum(axis=1)
    np.testing.assert_allclose(shares, report["attention_g2_value_share"][:, 0], rtol=1e-4)
    checks = check_model(subject, samples()[0])
    assert all(check.passed for check in checks), checks


@every_family
def test_streamed_forward_pass_is_the_same(tmp_path, family):
    """GPT-2 is not streamed; the others' blocks hold weights only while they run."""
    source = find_source(saved(tmp_path / family, family))
    whole, streamed = (load_subject(source, CPU, stream) for stream in (False, True))
    a, b = (measure(s, samples(), None, lambda tokens: None, "forward", wanted=Wanted()) for s in (whole, streamed))
    for name, array in a.report.arrays.items():
        np.testing.assert_allclose(b.report[name], array, rtol=1e-5, atol=1e-7, err_msg=name)
    if family != "gpt2":
        assert all(parameter.is_meta for block in streamed.blocks for parameter in block.parameters())
        null, _ = untrained_subject(source, CPU, stream=True)
        assert np.isfinite(measure(null, samples(), 0, lambda tokens: None, "forward", wanted=Wanted()).loss)


def test_our_llama_and_transformers_agree(tmp_path):
    """One model, both ways through the analysis."""
    from megasink.analysis.families import load_transformers

    folder = saved(tmp_path / "llama", "llama", attention_bias=False)
    source = find_source(folder)
    assert source.family == "megasink"
    ours, theirs = load_subject(source, CPU), load_transformers(folder, source.config.model, CPU)
    a, b = (measure(s, samples(), None, lambda tokens: None, wanted=Wanted((0, "auto"))) for s in (ours, theirs))
    for name, array in a.report.arrays.items():
        if "by_sequence_top1_" in name or name.endswith("_by_input_norm_count") or "_by_input_norm" in name:
            continue  # where the largest element is, and which bin a norm falls into, can turn on the last bit
        scale = np.nanmax(np.abs(array), initial=0.0)
        np.testing.assert_allclose(b.report[name], array, rtol=5e-4, atol=2e-6 * scale, err_msg=name)


@every_family
def test_the_null_is_the_same_at_every_call(tmp_path, family):
    source = find_source(saved(tmp_path / family, family))
    first, second = (untrained_subject(source, CPU)[0].module.state_dict() for _ in range(2))
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name


class TestRefusals:
    """Each is one line that names the thing."""

    def folder(self, tmp_path, **config):
        (tmp_path / "model.safetensors").write_bytes(b"")
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    def test_unknown_family(self, tmp_path):
        with pytest.raises(UserError, match="model_type 'gemma2' is not supported; llama, mistral, qwen2"):
            find_source(self.folder(tmp_path, model_type="gemma2"))

    def test_no_family_at_all(self, tmp_path):
        with pytest.raises(UserError, match="model_type None"):
            find_source(self.folder(tmp_path))

    def test_missing_weights(self, tmp_path):
        from safetensors.torch import load_file, save_file

        folder = saved(tmp_path / "qwen2", "qwen2")
        weights = load_file(folder / "model.safetensors")
        del weights["model.layers.1.mlp.up_proj.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        for stream in (False, True):
            with pytest.raises(UserError, match="up_proj"):
                subject = load_subject(find_source(folder), CPU, stream)
                measure(subject, samples(), None, lambda tokens: None, "forward", wanted=Wanted())

    def test_weights_of_another_shape_without_a_table_of_transformers(self, tmp_path):
        folder = saved(tmp_path / "qwen2", "qwen2")
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"num_key_value_heads": 1}))
        program = (
            "import sys, torch; from pathlib import Path; "
            "from megasink.analysis.source import find_source, load_subject; from megasink.errors import run_cli; "
            "run_cli(lambda: load_subject(find_source(Path(sys.argv[1])), torch.device('cpu'), False))"
        )
        result = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True)
        (line,) = result.stderr.splitlines()
        assert result.returncode == 2 and "mismatched keys, ('model.layers.0.self_attn.k_proj" in line

    @pytest.mark.parametrize("stream", [False, True])
    def test_nan_weights(self, tmp_path, stream):
        from safetensors.torch import load_file, save_file

        folder = saved(tmp_path / "qwen2", "qwen2")
        weights = load_file(folder / "model.safetensors")
        weights["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match="NaN"):
            subject = load_subject(find_source(folder), CPU, stream)
            measure(subject, samples(), None, lambda tokens: None, "forward", wanted=Wanted())

    def test_longer_than_the_sliding_window(self, tmp_path):
        from megasink.analysis.families import check_length

        folder = saved(tmp_path / "mistral", "mistral")
        check_length(folder, 48)
        with pytest.raises(UserError, match="48 tokens back"):
            check_length(folder, 49)

    def test_more_positions_than_there_are(self, tmp_path):
        from megasink.analysis.families import check_length

        with pytest.raises(UserError, match="64 positions"):
            check_length(saved(tmp_path / "gpt2", "gpt2"), 65)
