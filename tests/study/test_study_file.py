"""A study file becomes runs; whatever is wrong with it is one line before anything starts."""

import pytest

from megasink.errors import UserError
from megasink.study.study_file import flat, load_study, to_words
from tests.study.files import PRESET, TINY_FLAGS, write_study


def test_runs_are_all_arms_of_a_seed_then_those_of_the_next(tmp_path):
    study = load_study(write_study(tmp_path / "name.yaml", seeds=[7, 8]))
    assert study.name == "name" and study.baseline == "baseline"
    assert [run.name for run in study.runs] == ["baseline_seed7", "V-scale_seed7", "baseline_seed8", "V-scale_seed8"]
    run = study.runs[3]
    assert (run.config.training.seed, run.config.model.v_scale) == (8, "on")
    assert run.config.checkpoint.save == str(tmp_path / "out" / "V-scale_seed8") and run.config.checkpoint.auto_resume


def test_flags_lie_over_the_presets_yaml_and_an_arms_flags_over_both(tmp_path):
    arms = {"baseline": {}, "other": {"weight_decay": "0.5"}}
    baseline, other = load_study(write_study(tmp_path / "s.yaml", arms=arms)).runs
    assert baseline.config.optimizer.weight_decay == 0.1  # pretrain_0.1b.yaml's
    assert baseline.config.model.hidden_size == 32 and flat(other.config)["weight_decay"] == 0.5


def test_values_are_words_as_on_a_command_line(tmp_path):
    path = write_study(tmp_path / "s.yaml")
    path.write_text(path.read_text() + "sbatch: {time: 24:00:00, exclusive: true}\n")
    assert load_study(path).sbatch == {"time": "24:00:00", "exclusive": "true"}  # YAML 1.1 says 86400
    words = to_words({"compile": "false", "data_path": ["0.5", "a"], "lr": "1e-3", "v-scale": "on"})
    assert " ".join(words) == "--no-compile --data-path 0.5 a --lr 1e-3 --v-scale on"


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"script": "nowhere.sh"}, "script nowhere.sh: no such file here"),
        ({"arms": {}}, "arms: name at least one"),
        ({"arms": {"a": {"lrr": "1"}}}, "arm a: Unrecognized options: --lrr"),
        ({"arms": {"a": {"lr": "fast"}}}, "arm a: "),
        ({"arms": {"a": {}, "b": {"adam-beta1": "1"}}}, "arm b: --adam-beta1 1"),
        ({"arms": {"a": {"num-attention-heads": "0"}}}, "arm a: --num-attention-heads 0"),
        ({"out": ""}, "out is empty"),
        ({"arms": {"a/b": {}}}, "arm 'a/b': becomes a folder's name"),
        ({"arms": {"a": {"seed": "1"}}}, "flag seed: the study gives it itself"),
        ({"arms": {"a": {}, "b": {"global-batch-size": "8"}}}, "arm b has --global-batch-size 8, a has 4"),
        ({"arms": {"a": {}, "b": {"data-path": "x"}}}, "same_data: false"),
        ({"arms": ["a"]}, "arms: "),
        ({"seeds": [1, 1]}, "seeds: 1, 1: one is there twice"),
        ({"seeds": ["one"]}, "seeds.0: "),
        ({"baseline": "c"}, "baseline c: no such arm; arms are baseline, V-scale"),
        ({"armz": {}}, "unknown key armz; known here: script"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_file(tmp_path, keys, says):
    path = write_study(tmp_path / "s.yaml", **keys)
    with pytest.raises(UserError) as error:
        load_study(path)
    assert str(error.value).startswith(str(path)) and says in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a", "expected `key: value` lines"),
        ("script: [", "not YAML"),
        ("script: a\nscript: b", "script is there twice"),
        ("script: a\nout: b", "no `arms:`"),
        ("", "expected `key: value` lines"),
    ],
)
def test_bad_yaml_is_one_line(tmp_path, text, says):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UserError, match=says):
        load_study(tmp_path / "s.yaml")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="No such file or directory; give the path of a YAML file"):
        load_study(tmp_path / "s.yaml")


def test_other_data_can_be_asked_for(tmp_path):
    arms = {"short": {}, "long": {"seq-length": "32"}}
    assert len(load_study(write_study(tmp_path / "s.yaml", arms=arms, same_data="false")).runs) == 2
    assert PRESET.with_suffix(".yaml").is_file() and TINY_FLAGS["seq-length"] == "16"
