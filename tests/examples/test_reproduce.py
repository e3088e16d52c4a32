"""examples/reproduce: its recipes are valid, its verdict asks what was registered, and the whole command runs small."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import yaml

from megasink.config.cli import from_dict, parse_cli
from megasink.errors import UserError
from megasink.model.llama import Llama
from megasink.study.study_file import load_study, read_words
from tests.analysis.runs import write_checkpoint, write_shards
from tests.helpers.jobs import ROOT
from tests.helpers.tiny import tiny_config
from tests.study.files import write_study

FOLDER = ROOT / "examples" / "reproduce"
sys.path.insert(0, str(FOLDER))

from prepare import text_patterns  # noqa: E402
from reproduce import Recipe, ReproduceRequest, analyse, make_tokens, reproduce  # noqa: E402
from verdict import ArmFigures, judge, read_figures, verdict_text  # noqa: E402

PAPER = ArmFigures("baseline", 2.9168, 0.6172, 0.7, 1916, 11.12, 1.3, 300, 15.5, 2.5)
SHRUNK = ArmFigures("V-scale", 2.9068, 0.5018, 0.6, 346, 3.03, 1.3, 60, 2.6, 2.5)


def answers(baseline: ArmFigures, other: ArmFigures) -> list[bool | None]:
    return [criterion.holds for criterion in judge(baseline, [other])]


def test_the_papers_own_figures_pass_every_question():
    assert answers(PAPER, SHRUNK) == [True] * 8


def test_a_baseline_without_sinks_answers_nothing_about_them():
    flat = ArmFigures("baseline", 2.68, 0.053, 0.02, 623, 3.2, 1.3, 113, 6.4, 2.7)
    assert answers(flat, SHRUNK) == [False, False, True, None, None, None, True, False]


def test_without_a_gradient_sink_in_the_baseline_none_can_go():
    without = ArmFigures("baseline", 2.9168, 0.6172, 0.7, 1916, 11.12, 1.3, 300, 1.8, 2.5)
    assert answers(without, SHRUNK)[2] is False and answers(without, SHRUNK)[6] is None


def test_an_arm_that_loses_sinks_or_loss_is_told_so():
    worse = ArmFigures("V-scale", 2.95, 0.2, 0.1, 1500, 9.0, 1.3, 200, 30.0, 2.5)
    assert answers(PAPER, worse) == [True, True, True, False, False, False, False, False]


def test_only_what_the_globs_name_counts_in_a_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.py").write_text("x")
    (tmp_path / "y.jsonl").write_text("{}")
    file = str(tmp_path / "y.jsonl")
    assert text_patterns((str(tmp_path), file), ("*.py", "*.h")) == [f"{tmp_path}/**/*.py", file]
    assert text_patterns((str(tmp_path),), ()) == [str(tmp_path)]
    for text, globs, says in (
        ((), (), "give --text"),
        (("no",), (), "--text no"),
        ((str(tmp_path),), ("*.c",), "--glob"),
    ):
        with pytest.raises(UserError, match=says):
            text_patterns(text, globs)


@pytest.mark.parametrize("name", ["recipe.yaml", "cpu.yaml", "backcopy.yaml", "search.yaml", "backcopy_search.yaml"])
def test_a_recipe_is_a_valid_study(name, tmp_path):
    """Every flag is known, and arms that are compared read the same data."""
    recipe = read_words(FOLDER / name)
    study = {key: recipe[key] for key in ("arms", "flags", "seeds", "same_data") if key in recipe}
    path = tmp_path / "study.yaml"
    path.write_text(
        yaml.safe_dump(study | {"script": str(ROOT / "examples" / "pretrain_0.1b.sh"), "out": "x"}, sort_keys=False)
    )
    runs = load_study(path).runs
    assert all(run.config.optimizer.lr_wsd_decay_iters < run.config.training.train_iters for run in runs)
    kinds = ["off"] if "search" in name else ["off", "on", "backward-only"]
    assert list(dict.fromkeys(run.config.model.v_scale for run in runs)) == kinds


def test_a_recipe_that_makes_its_own_tokens_takes_no_text_and_one_length(tmp_path):
    recipe = from_dict(Recipe, read_words(FOLDER / "backcopy.yaml"), "backcopy.yaml")
    with pytest.raises(UserError, match="leave --text"):
        make_tokens(recipe, ReproduceRequest("backcopy.yaml", text=("text",)), tmp_path)
    recipe.arms["longer"] = {"seq-length": "256"}
    with pytest.raises(UserError, match="one --seq-length"):
        make_tokens(recipe, ReproduceRequest("backcopy.yaml"), tmp_path)
    del recipe.arms["longer"]
    recipe.backcopy = replace(recipe.backcopy, train_sequences=9)
    manifest = make_tokens(recipe, ReproduceRequest("backcopy.yaml"), tmp_path)
    assert manifest["tokens"] == 9 * 128


@pytest.mark.parametrize(
    ("flag", "values", "says"),
    [
        ("--at-once", ["0"], "--at-once 0: at least one"),
        ("--arms", ["nobody"], "--arms nobody: the recipe has baseline, V-scale"),
        ("--seeds", ["1", "1"], "--seeds 1 1: one is there twice"),
        ("--out", [""], "--out is empty"),
        ("--out", ["/dev/null"], "--out /dev/null: cannot write there"),
    ],
)
def test_a_mistake_is_said_before_any_text_is_looked_for(flag, values, says):
    with pytest.raises(UserError, match=says):
        reproduce(parse_cli(ReproduceRequest, [str(ROOT / "examples/reproduce/cpu.yaml"), flag, *values]))


def test_only_steps_that_every_arm_has_saved_are_analysed(tmp_path, monkeypatch):
    """An interrupted arm has saved at the step it was at, which the others have not."""
    monkeypatch.chdir(ROOT)
    study = load_study(write_study(tmp_path / "study.yaml"))
    recipe = Recipe({}, {}, [], 91, analysis={"tokens": "240", "figures": "7"})
    for name in ("results", "data"):
        (tmp_path / name).mkdir()
    write_shards(tmp_path / "data" / "tokens_valid", 91)
    for run, steps in zip(study.runs, ((0, 1, 4), (0, 3, 4)), strict=True):
        for step in steps:
            write_checkpoint(run.folder / "checkpoints" / f"step_{step:08d}", Llama(tiny_config(), seed=step), step)
    analyse(study, recipe, tmp_path)
    analysed = tmp_path / "reports" / "seed_1234" / "baseline+V-scale"
    assert [path.name for path in analysed.iterdir()] == ["step_00000004"]
    shutil.rmtree(study.runs[1].folder / "checkpoints" / "step_00000004")
    with pytest.raises(UserError, match="seed 1234: baseline and V-scale have saved no step in common"):
        analyse(study, recipe, tmp_path)


def test_from_text_to_verdict(tmp_path, monkeypatch, capfd):
    """The whole command on a few documents and steps; started again it finds everything done."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    text = tmp_path / "text"
    text.mkdir()
    for number in range(60):
        words = " ".join(f"word{(number * k) % 97}" for k in range(200))
        (text / f"{number}.py").write_text(f"def f{number}():\n    return '{words}'\n")
    recipe = read_words(FOLDER / "cpu.yaml")
    small = {"num-layers": "2", "hidden-size": "32", "ffn-hidden-size": "48", "seq-length": "32", "train-iters": "4"}
    small |= {"lr-wsd-decay-iters": "1", "lr-warmup-iters": "0", "save-interval": "2", "eval-interval": "4"}
    small |= {"micro-batch-size": "2", "global-batch-size": "2", "eval-iters": "1", "sink-stats-interval": "2"}
    recipe |= {"vocab_size": "300", "valid_share": "0.3", "flags": recipe["flags"] | small}
    recipe |= {"analysis": {"tokens": "256", "figures": "7"}, "last_analysis": {}}
    recipe["arms"].pop("backward-only")
    launch = tmp_path / "plain.sh"
    launch.write_text(f'exec {sys.executable} -u -m megasink.train --micro-batch-size 2 "$@"\n')
    recipe["script"] = str(launch)
    launch.with_suffix(".yaml").write_text("{}")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    out = tmp_path / "out"

    def run(*flags: str) -> int:
        monkeypatch.chdir(tmp_path)
        return reproduce(parse_cli(ReproduceRequest, ["recipe.yaml", "--out", "out", "--at-once", "2", *flags]))

    assert run("--text", "text", "--glob", "*.py") == 0
    said = capfd.readouterr().out
    assert said.index("V-scale_seed1: from step 0") < said.index("baseline_seed1: finished")
    earlier = said.index("step_00000002/report.html")
    assert said.index("seed 1, step_00000004") < earlier  # the verdict does not wait for what is of less interest
    results = out / "results"
    verdict = (results / "verdict_seed_1.md").read_text()
    assert "cannot be said: the gate is closed" in verdict
    figures = read_figures(results / "report_seed_1")
    assert [arm.arm for arm in figures] == ["baseline", "V-scale"] and verdict_text(figures) == verdict
    stored = np.load(out / "reports" / "seed_1" / "baseline+V-scale" / "step_00000004" / "by_sequence.npz")
    (ratios,) = (stored[name] for name in stored if name.endswith("baseline/trained/gradient_sink_ratio_early"))
    assert figures[0].gradient_sink == np.median(ratios)
    metrics = results / "report_seed_1" / "metrics.json"
    assert metrics.read_text().count('"key":"gradient_sink_ratio_early"') == 3  # of each arm, and compared
    metrics.write_text(metrics.read_text().replace('"key":', '"other":'))
    with pytest.raises(UserError, match=r"report_seed_1.*an earlier megasink.*remove the folder"):
        read_figures(results / "report_seed_1")
    assert list(out.glob("reports/**/by_sequence.npz")) and not list(results.rglob("*.npz"))
    assert (results / "reproduce_recipe.yaml").is_file() and (results / "study.html").is_file()
    assert (results / "baseline_seed1" / "scalars.jsonl").is_file()
    manifest = json.loads((out / "data" / "tokens_train.json").read_text())
    assert f"{manifest['tokens'] / 1e6:.1f} M unique tokens" in said

    assert run("--text", "text", "--glob", "*.py") == 0
    assert capfd.readouterr().out.count("finished before") == 2
    with pytest.raises(UserError, match="made from other text or settings"):
        run("--text", "text")
