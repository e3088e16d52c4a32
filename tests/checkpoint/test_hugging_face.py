"""Hugging Face folders in and out: weights to the bit, logits to 1e-5, a KV cache that agrees, refusals in one line."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from megasink.checkpoint.convert import ConvertRequest, convert
from megasink.checkpoint.generation import load_for_generation
from megasink.checkpoint.manifest import describe_file, write_manifest
from megasink.checkpoint.saver import save_checkpoint
from megasink.checkpoint.weights import load_weights
from megasink.config import CheckpointConfig, ModelConfig, RunConfig
from megasink.config.cli import load_yaml
from megasink.errors import UserError
from megasink.model.llama import Llama
from megasink.parallel.layout import build_layout
from megasink.train.distributed import start_distributed
from megasink.train.engine import TrainEngine
from tests.helpers.layouts import Case, run_config
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import tiny_config

ROOT = Path(__file__).parents[2]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
FOLDERS = {
    "mha_untied": {"num_key_value_heads": 4},
    "gqa_tied": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "gqa_head_dim_llama3": {"num_key_value_heads": 2, "head_dim": 16, "rope_parameters": LLAMA3},
    "one_head_epsilon": {"num_key_value_heads": 1, "rms_norm_eps": 3e-3},
}


def make_folder(folder: Path, **changes) -> LlamaForCausalLM:
    shape = dict(
        vocab_size=91,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    torch.manual_seed(3)
    model = LlamaForCausalLM(LlamaConfig(**(shape | changes)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model.eval()


def through_ranks(cases: list[tuple[str, str]]) -> None:
    """Load each checkpoint at TP2 x PP2 with the engine and save it again."""
    device = start_distributed()
    layout = build_layout(2, 2)
    for source, target in cases:
        config = run_config(Case("plain_mha", tensor=2, pipeline=2))
        config.model = load_yaml(RunConfig, f"{source}/config.yaml").model
        engine = TrainEngine(config, layout, device, Path(source))
        Path(target).mkdir(parents=True, exist_ok=True)
        save_checkpoint(Path(target), {"step": 0}, engine.model, config, layout, engine=None)
        torch.distributed.barrier()


@pytest.fixture(scope="module")
def round_trips(tmp_path_factory) -> Path:
    """NAME/hf -> NAME/megasink -> (TP2 x PP2) NAME/run -> NAME/back."""
    root = tmp_path_factory.mktemp("hf")
    for name, changes in FOLDERS.items():
        make_folder(root / name / "hf", **changes)
        convert(ConvertRequest(str(root / name / "hf"), str(root / name / "megasink"), "megasink"))
    run_ranks(
        4, through_ranks, [(str(root / name / "megasink"), str(root / name / "run/checkpoints")) for name in FOLDERS]
    )
    for name in FOLDERS:
        convert(ConvertRequest(str(root / name / "run"), str(root / name / "back")))
    return root


@pytest.mark.parametrize("name", FOLDERS)
def test_round_trip_is_bit_equal(round_trips, name):
    before, after = (load_file(round_trips / name / side / "model.safetensors") for side in ("hf", "back"))
    assert set(before) == set(after)
    for weight_name, weight in before.items():
        assert torch.equal(weight, after[weight_name]), weight_name


@pytest.mark.parametrize("name", FOLDERS)
def test_configuration_survives(round_trips, name):
    before, after = (LlamaConfig.from_pretrained(round_trips / name / side) for side in ("hf", "back"))
    for key in (
        "rope_parameters",
        "num_key_value_heads",
        "num_attention_heads",
        "head_dim",
        "rms_norm_eps",
        "vocab_size",
        "tie_word_embeddings",
        "initializer_range",
    ):
        assert getattr(after, key) == getattr(before, key), key


@pytest.mark.parametrize("name", FOLDERS)
def test_logits_equal_transformers(round_trips, name):
    """RoPE, GQA order, epsilon: our model on the converted weights against transformers on the original folder."""
    config = load_yaml(RunConfig, round_trips / name / "megasink" / "config.yaml").model
    ours = Llama(config)
    load_weights(ours, config, round_trips / name / "megasink")
    theirs = LlamaForCausalLM.from_pretrained(round_trips / name / "back", dtype=torch.float32)
    tokens = torch.arange(60).view(2, 30)
    with torch.no_grad():
        logits = ours(tokens)[..., : config.vocab_size]
        torch.testing.assert_close(theirs(tokens).logits, logits, rtol=1e-5, atol=1e-5)


def make_run(folder: Path, **changes) -> tuple[RunConfig, Llama]:
    """A run folder with one checkpoint of random weights; theta is random too."""
    config = RunConfig(tiny_config(**changes), checkpoint=CheckpointConfig(save=str(folder)))
    model = Llama(config.model, seed=5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("theta"):
                parameter.copy_(torch.linspace(-1.0, 1.0, len(parameter)))
    checkpoint = folder / "checkpoints" / "step_00000007"
    checkpoint.mkdir(parents=True)
    from megasink.checkpoint.weights import SINGLE_FILE, gather_weights
    from megasink.config.cli import to_yaml
    from megasink.parallel.layout import ParallelLayout

    save_file(
        gather_weights(model, config.model, ParallelLayout()), checkpoint / SINGLE_FILE, metadata={"format": "pt"}
    )
    (checkpoint / "config.yaml").write_text(to_yaml(config))
    (checkpoint / "state.json").write_text('{"step": 7}')
    return config, model


@pytest.mark.parametrize("tied", [False, True])
def test_v_scale_model_loads_with_remote_code_and_generates_with_a_cache(tmp_path, tied):
    config, ours = make_run(tmp_path / "run", v_scale="on", untie_embeddings_and_output_weights=not tied)
    convert(ConvertRequest(str(tmp_path / "run"), str(tmp_path / "hf")))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", trust_remote_code=True, dtype=torch.float32).eval()
    tokens = torch.arange(48).view(2, 24)
    with torch.no_grad():
        expected = ours(tokens)[..., : config.model.vocab_size]
        torch.testing.assert_close(theirs(tokens).logits, expected, rtol=1e-5, atol=1e-5)
        prompt = tokens[:1, :5]
        mask = torch.ones_like(prompt)
        cached = theirs.generate(prompt, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)
        tail = prompt
        for _ in range(12):  # without a cache, by our own model
            tail = torch.cat((tail, ours(tail)[:, -1:, : config.model.vocab_size].argmax(-1)), dim=1)
    assert torch.equal(cached, tail)


def test_theta_stays_fp32_in_a_bf16_model(tmp_path):
    make_run(tmp_path / "run", v_scale="on")
    convert(ConvertRequest(str(tmp_path / "run"), str(tmp_path / "hf"), dtype="bfloat16"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", trust_remote_code=True, dtype=torch.bfloat16)
    assert model.model.layers[0].self_attn.v_scale.theta.dtype == torch.float32
    assert model.model.layers[0].self_attn.v_proj.weight.dtype == torch.bfloat16


def test_v_scale_folder_converts_back(tmp_path):
    config, _ = make_run(tmp_path / "run", v_scale="on")
    convert(ConvertRequest(str(tmp_path / "run"), str(tmp_path / "hf")))
    convert(ConvertRequest(str(tmp_path / "hf"), str(tmp_path / "again"), "megasink"))
    again = load_yaml(RunConfig, tmp_path / "again" / "config.yaml").model
    assert again.v_scale == "on" and again.init_method_std == config.model.init_method_std
    first = load_file(tmp_path / "run/checkpoints/step_00000007/model.safetensors")
    second = load_file(tmp_path / "again/model.safetensors")
    assert set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("mode", ["off", "backward-only"])
def test_other_modes_are_plain_llamas(tmp_path, mode):
    """A backward-only model's forward pass is a plain Llama's."""
    config, ours = make_run(tmp_path / "run", v_scale=mode)
    convert(ConvertRequest(str(tmp_path / "run"), str(tmp_path / "hf")))
    assert sorted(path.name for path in (tmp_path / "hf").iterdir()) == ["config.json", "model.safetensors"]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    assert type(theirs) is LlamaForCausalLM
    tokens = torch.arange(24).view(1, 24)
    with torch.no_grad():
        expected = ours(tokens)[..., : config.model.vocab_size]
        torch.testing.assert_close(theirs(tokens).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"model_type": "gpt2"}, "only Llamas"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}, "rope_parameters": None}, "yarn"),
        ({"rope_parameters": ["yarn"]}, "rope_parameters is"),
        ({"rope_parameters": LLAMA3 | {"factor": "eight"}}, "rotary_scaling_factor"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "factor is missing"),
        ({"rms_norm_eps": None}, "norm_epsilon"),
        ({"vocab_size": None}, "vocab_size"),
        ({"num_attention_heads": 0}, "num-attention-heads 0"),
        ({"num_hidden_layers": 3}, "holds no model.layers.2"),
        ({"num_hidden_layers": 1}, "does not have"),
        ({"intermediate_size": 47}, "has shape"),
    ],
)
def test_folders_that_do_not_fit_are_refused(tmp_path, change, part):
    make_folder(tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=part):
        convert(ConvertRequest(str(tmp_path / "hf"), str(tmp_path / "out"), "megasink"))
    assert not (tmp_path / "out").exists() and not (tmp_path / ".tmp-out").exists()


def test_existing_output_is_not_touched(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists"):
        convert(ConvertRequest(str(tmp_path), str(tmp_path / "out")))


def test_a_copy_beside_the_checkpoints_is_not_the_newest(tmp_path):
    make_run(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step_99999999_mine").mkdir()
    convert(ConvertRequest(str(tmp_path / "run"), str(tmp_path / "out")))


def test_a_damaged_newest_checkpoint_is_not_passed_over_for_an_older_one(tmp_path):
    make_run(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step_00000008").mkdir()
    with pytest.raises(UserError, match="step_00000008: damaged"):
        convert(ConvertRequest(str(tmp_path / "run"), str(tmp_path / "out")))


def test_weights_that_changed_since_they_were_written_are_not_used(tmp_path):
    make_run(tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000007"
    write_manifest(checkpoint, {path.name: describe_file(path) for path in checkpoint.iterdir()})
    load_for_generation(tmp_path / "run")
    with open(checkpoint / "model.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    for use in (
        lambda: convert(ConvertRequest(str(checkpoint), str(tmp_path / "out"))),
        lambda: load_for_generation(checkpoint),
    ):
        with pytest.raises(UserError, match=r"step_00000007 is damaged \(model\.safetensors has changed"):
            use()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--temperature", "nan"], "--temperature nan"),
        (["--temperature", "1e-40"], "--temperature 1e-40"),
        (["--seed", "99999999999999999999"], "--seed 0 or more"),
        (["--prompt", b"a\xff"], "--prompt is not UTF-8"),
    ],
)
def test_generate_refuses_in_one_line(flags, says):
    command = [sys.executable, ROOT / "tools" / "generate.py", "--checkpoint", "nowhere", "--prompt", "a", *flags]
    result = subprocess.run(command, capture_output=True, text=True)
    (line,) = result.stderr.splitlines()
    assert result.returncode == 2 and says in line


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    make_folder(tmp_path / "hf")
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, most))
    try:
        with pytest.raises(UserError, match="File too large"):
            convert(ConvertRequest(str(tmp_path / "hf"), str(tmp_path / "out"), "megasink"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_missing_config_is_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    for to in ("hf", "megasink"):
        with pytest.raises(UserError, match="config"):
            convert(ConvertRequest(str(tmp_path), str(tmp_path / "out"), to))


def test_tools_answer_on_the_command_line(tmp_path):
    """convert_ckpt.py, then generate.py with the tokenizer the run names; the KV cache path end to end."""
    import sentencepiece

    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(f"the cat number {i} sat on the mat and saw {i * i} dogs" for i in range(300)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(tmp_path / "tok"),
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tok.model"))
    make_run(tmp_path / "run", v_scale="on", vocab_size=pieces.vocab_size())
    yaml = tmp_path / "run/checkpoints/step_00000007/config.yaml"
    yaml.write_text(yaml.read_text().replace("tokenizer: null", f"tokenizer: {tmp_path}/tok.model"))
    run_tool("convert_ckpt.py", "--input", str(tmp_path / "run"), "--output", str(tmp_path / "hf"))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    theirs = tokenizer("the cat sat")["input_ids"]
    assert theirs == [pieces.bos_id(), *pieces.encode("the cat sat")]
    for source in ("run", "hf"):
        flags = ["--prompt", "the cat", "--max-new-tokens", "8"]
        said = run_tool("generate.py", "--checkpoint", str(tmp_path / source), *flags)
        assert said.startswith("the cat") and len(said) > len("the cat\n")


def run_tool(name: str, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, str(ROOT / "tools" / name), *arguments], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_model_config_is_complete():
    """A field added to ModelConfig must be thought of here: is it carried into config.json?"""
    carried = {
        "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "head_dim",
        "vocab_size", "seq_length", "rotary_base", "rotary_scaling_factor", "rotary_scaling_low_freq_factor",
        "rotary_scaling_high_freq_factor", "rotary_scaling_original_length", "norm_epsilon", "init_method_std",
        "untie_embeddings_and_output_weights", "v_scale",
    }  # fmt: skip
    of_training_only = {
        "make_vocab_size_divisible_by", "reset_attention_mask", "reset_position_ids", "embedding_init_method_std"
    }  # fmt: skip
    assert set(ModelConfig.__dataclass_fields__) == carried | of_training_only
