"""Defaults < YAML < flags, and every mistake is one line that names the flag or key."""

import shlex
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from megasink.config import ModelConfig, RunConfig
from megasink.config.cli import load_yaml, parse_cli, to_yaml
from megasink.errors import UserError

NAMES_PEOPLE_TYPE = shlex.split(
    """
    --num-layers --hidden-size --ffn-hidden-size --num-attention-heads --num-query-groups --head-dim --vocab-size
    --seq-length --tensor-model-parallel-size --pipeline-model-parallel-size --sequence-parallel --zero-stage
    --precision --fp8 --micro-batch-size --global-batch-size --train-iters --lr --seed --data-path --tokenizer --save
    --save-interval --auto-resume --v-scale --sink-stats-interval
    """
)


@pytest.fixture
def yaml_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "model: {num_layers: 3, hidden_size: 96}\noptimizer: {lr: 2.0e-3}\ncheckpoint: {auto_resume: true}\n"
    )
    return path


def test_a_flag_beats_the_file_which_beats_the_default(yaml_file):
    config = parse_cli(RunConfig, ["--hidden-size", "64", "--config", str(yaml_file)])
    assert (config.model.num_layers, config.model.hidden_size, config.model.seq_length) == (3, 64, 2048)
    assert config.optimizer.lr == 2e-3


def test_a_later_file_overrides_an_earlier_one_key_by_key(yaml_file, tmp_path):
    over = tmp_path / "over.yaml"
    over.write_text("model: {hidden_size: 32}\ntraining: {micro_batch_size: 7}\n")
    config = parse_cli(RunConfig, ["--config", str(yaml_file), f"--config={over}", "--micro-batch-size", "5"])
    assert (config.model.num_layers, config.model.hidden_size, config.training.micro_batch_size) == (3, 32, 5)
    over.write_text("model: {hidden_sise: 32}\n")
    with pytest.raises(UserError, match=f"{over}: unknown key model.hidden_sise"):
        parse_cli(RunConfig, ["--config", str(yaml_file), f"--config={over}"])


def test_a_boolean_of_the_file_can_be_switched_off(yaml_file):
    assert parse_cli(RunConfig, [f"--config={yaml_file}"]).checkpoint.auto_resume
    assert not parse_cli(RunConfig, [f"--config={yaml_file}", "--no-auto-resume"]).checkpoint.auto_resume


def test_the_names_that_scripts_use_exist(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_cli(RunConfig, ["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert [name for name in NAMES_PEOPLE_TYPE if name not in shown] == []


@dataclass
class Command:
    """What the command does."""

    model: ModelConfig = field(default_factory=ModelConfig)
    folder: str | None = None
    """A folder, in a text of
    two lines."""
    names: tuple[str, ...] = ()
    """Some names."""


def test_help_tells_of_the_file_and_of_no_default_that_says_nothing(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        parse_cli(Command, ["--help"])
    shown = capsys.readouterr().out
    assert "--config FILE.yaml" in shown and "later files win" in shown.lower()
    assert "What the command does." in shown and ModelConfig.__doc__ in shown
    assert "A folder, in a text of two lines. " in shown and "Some names. " in shown
    assert "Width of the residual stream. (default: 2048)" in shown
    assert "(default: None)" not in shown and "(default: )" not in shown


def test_help_of_a_module_names_the_module():
    result = subprocess.run([sys.executable, "-m", "megasink.train", "--help"], capture_output=True, text=True)
    assert result.stdout.startswith("usage: python -m megasink.train [-h]")


def test_field_names_are_unique_over_sections():
    names = [name for section in vars(RunConfig()).values() for name in vars(section)]
    assert len(names) == len(set(names))


def test_data_path_takes_several_words():
    assert parse_cli(RunConfig, ["--data-path", "0.7", "a", "0.3", "b"]).data.data_path == ("0.7", "a", "0.3", "b")


def test_yaml_comes_back_equal(tmp_path):
    config = parse_cli(RunConfig, ["--data-path", "a", "b", "--v-scale", "on", "--lr", "1e-5", "--save", "x"])
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_yaml(RunConfig, tmp_path / "again.yaml") == config


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["--num-layerz", "3"], "--num-layers"),
        (["--num-layers", "three"], "three"),
        (["--precision", "fp8"], "fp8"),
        (["--num-layers"], "--num-layers"),
        (["stray"], "stray"),
        (["--config"], "--config"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml"),
    ],
)
def test_a_wrong_flag_is_one_line(argv, names):
    with pytest.raises(UserError) as error:
        parse_cli(RunConfig, argv)
    assert names in str(error.value) and "\n" not in str(error.value) and "│" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("model: {num_layerz: 3}", "model.num_layerz; known here: num_layers"),
        ("modle: {num_layers: 3}", "modle; known here: model"),
        ("model: {num_layers: many}", "model.num_layers"),
        ("model: 3", "model"),
        ("- a list", "found list"),
        ("model: {", "not YAML"),
        ("logging: {run_name: 2026-13-01}", "not YAML (month must be"),
        ("model: {num_layers: 3}\nmodel: {hidden_size: 64}", "model is there twice"),
        ("model: {num_layers: 3, num_layers: 4}", "num_layers is there twice"),
        ("data: {data_path: a}", "data.data_path: Input should be a list in brackets (got 'a')"),
    ],
)
def test_a_wrong_yaml_key_is_named(tmp_path, text, names):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        parse_cli(RunConfig, ["--config", str(path)])
    assert str(path) in str(error.value) and names in str(error.value)


def test_weights_in_a_file_need_no_quotes(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data: {data_path: [0.7, a, 0.3, b]}\nlogging: {run_name: 7}\n")
    config = load_yaml(RunConfig, path)
    assert (config.data.data_path, config.logging.run_name) == (("0.7", "a", "0.3", "b"), "7")


def test_the_word_off_in_a_file_is_a_word(tmp_path):
    """YAML 1.1 reads an unquoted off as false; as a boolean it still is one where a boolean is asked for."""
    path = tmp_path / "run.yaml"
    path.write_text("model: {v_scale: off}\nsink_stats: {sink_stats: off}\ncheckpoint: {auto_resume: on}\n")
    config = load_yaml(RunConfig, path)
    assert (config.model.v_scale, config.sink_stats.sink_stats, config.checkpoint.auto_resume) == ("off", "off", True)
