"""The command: a report from run folders."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from megasink.analysis.analyze import analyze
from megasink.analysis.source import find_source, untrained_subject
from tests.analysis import synthetic
from tests.analysis.runs import request_for, write_run, write_shards
from tests.helpers.tiny import tiny_config

ROOT = Path(__file__).parents[2]


def test_command_writes_the_report(made, tmp_path):
    out = tmp_path / "report"
    command = [sys.executable, "tools/analyze_ckpt.py", made / "base", made / "vscale", "--label", "base", "vscale"]
    command += [
        "--data",
        made / "text",
        "--tokens",
        "0.2k",
        "--compare",
        "base:vscale",
        "--sink-pos",
        "0,auto,3",
        "--eps",
        "0.2,0.3",
        "--metrics",
        "all",
        "--null",
        "auto",
    ]
    command += ["--figures", "6,7,13", "--out", out, "--device", "cpu", "--quant"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert str(out / "report.html") in result.stdout
    assert sorted(path.name for path in (out / "figures").glob("*.png")) == [
        "figure06_gradient_sinks.png",
        "figure07_sinks_and_activations.png",
        "figure13_theta.png",
    ]
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and page.count("<svg") == 1
    assert "http" not in page.replace("http://www.w3.org", "") and "src=" in page and 'src="data:' in page
    assert page.count('<table class="sortable">') == 5 and "data-tip=" in page
    for words in ("peak memory", "SHA-256", "versions", "tools/analyze_ckpt.py", "seed 0", "Sink_k^eps"):
        assert words in page
    numbers = json.loads((out / "metrics.json").read_text())
    assert numbers["schema"] == "megasink.analysis/3"
    (setting,) = numbers["settings"]
    base, vscale = setting["models"]
    assert len(base["quantization"]) == 5 and "one fixed scale per layer" in page
    assert all(check["passed"] for model in setting["models"] for check in model["checks"])
    assert base["trained"]["meta"]["step"] == 20 and base["untrained"]["meta"]["step"] == 0
    assert "untrained weights in" in base["null_source"] and "seed 3" in vscale["null_source"]
    assert (
        vscale["details"]["V-scale"].startswith("on, C_0 = 30.72, 6 thetas from")
        and base["details"]["V-scale"] == "off"
    )
    for model in (base, vscale):  # so few tokens that the counterfactual is measured on all of them
        whole, cut = (model["counterfactual"][name]["arrays"] for name in ("whole", "value_path_cut"))
        assert whole["attention_g2_norm"] == model["trained"]["arrays"]["attention_g2_norm"]
        assert not np.any(cut["attention_g2_value_norm"]) and np.all(cut["attention_g2_key_norm"])
    assert setting["comparisons"][0][0]["name"] == "valid loss"
    with open(out / "layers.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 3
    expected = np.mean(base["trained"]["arrays"]["attention_sink"][1])
    assert float(rows[1]["attention_sink"]) == pytest.approx(expected)
    with open(out / "heads.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 3 * 4
    head = next(row for row in rows if row["model"] == "vscale" and (row["layer"], row["head"]) == ("1", "3"))
    arrays = vscale["trained"]["arrays"]
    assert float(head["theta"]) == arrays["theta"][1][1] and float(head["key_value_head"]) == 1
    assert float(head["value_path_share_by_head"]) == arrays["value_path_share_by_head"][1][1]
    assert not list(out.rglob("*.tmp"))


def lengths(value) -> set[int]:
    """Of all lists in a JSON document."""
    if not isinstance(value, (dict, list)):
        return set()
    inner = set().union(*map(lengths, value.values() if isinstance(value, dict) else value))
    return inner | {len(value)} if isinstance(value, list) else inner


def test_what_grows_with_the_text_lies_beside_metrics_json(made, tmp_path):
    """29 sequences: nothing else in a report has that size."""
    out = tmp_path / "out"
    options = dict(data=write_shards(tmp_path / "held_out", 91), tokens="464", seq_length="16", figures="6")
    analyze(request_for(made, made / "base", made / "vscale", out=str(out), **options), "")
    (setting,) = json.loads((out / "metrics.json").read_text())["settings"]
    assert 29 not in lengths(setting)
    with np.load(out / "by_sequence.npz", allow_pickle=False) as stored:
        found = {key: stored[key] for key in stored}
    assert {array.shape for array in found.values()} == {(29, 3), (29,)}
    parts = ("trained", "untrained", "counterfactual/whole", "counterfactual/value_path_cut")
    expected = {f"length_16/{model}/{part}" for model in ("base", "vscale") for part in parts}
    assert {key.rpartition("/")[0] for key in found} == expected
    for model in setting["models"]:
        for weights in ("trained", "untrained"):
            stored = {key: np.array(array) for key, array in model[weights]["arrays"].items()}
            mine = {key.rpartition("/")[2]: found[key] for key in found if f"/{model['label']}/{weights}/" in key}
            np.testing.assert_allclose(mine["loss"].mean(), model[weights]["loss"])
            np.testing.assert_allclose(mine["attention_sink"].mean(axis=0), stored["attention_sink"].mean(axis=1))
            np.testing.assert_allclose(mine["hidden_by_sequence_median"].mean(axis=0), stored["hidden_abs_median"])
            assert (mine["gradient_sink_ratio_strongest"] >= mine["gradient_sink_ratio"]).all()
            assert {"attention_to_auto", "gradient_sink_position", "mlp_out_by_sequence_top1"} < set(mine)


def test_without_stored_null_it_is_initialised_as_training_does(made):
    """The seed and the shape decide the untrained weights, so both ways to the null must give the same."""
    source = find_source(made / "base")
    stored, _ = untrained_subject(source, torch.device("cpu"))
    shutil.copytree(source.folder, made / "alone", dirs_exist_ok=True)
    again, _ = untrained_subject(find_source(made / "alone"), torch.device("cpu"))
    for (name, a), (_, b) in zip(stored.module.named_parameters(), again.module.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)


def test_newest_complete_checkpoint_of_a_run_counts(copied):
    half = copied / "checkpoints" / "step_00000030"
    half.mkdir()
    (half / "config.yaml").write_text("{}")
    assert find_source(copied).folder.name == "step_00000020"


def test_every_figure_is_drawn_and_trajectories_from_the_runs_reports(made, copied, tmp_path):
    for step in (0, 10, 20, 30):
        folder = copied / "sink_stats"
        folder.mkdir(exist_ok=True)
        name = "null.npz" if step == 0 else f"step_{step:08d}.npz"
        synthetic.report(step=step, layers=3).save(folder / name)
    (folder / "step_00000015.npz").write_bytes(b"damaged")
    analyze(request_for(made, copied, made / "vscale", out=str(tmp_path / "out")), "")
    assert {path.stem for path in (tmp_path / "out" / "figures").glob("*.png")} == {
        "figure01_value_gradients",
        "figure02_qkv_gradients",
        "figure03_attention_regulators",
        "figure06_gradient_sinks",
        "figure14_learned_gradient_sinks",
        "figure09_qkv_gradients_by_layer",
        "figure10_attention_regulators_by_depth",
        "counterfactual",
        "sink_positions",
        "value_path_by_head",
        "figure07_sinks_and_activations",
        "figure11_mlp_regulators",
        "figure12_value_norms",
        "figure13_theta",
        "gradient_paths",
        "massive_activations",
        "sink_heads",
        "trajectories",
    }


def test_forward_only_draws_what_needs_no_gradient(made, tmp_path):
    out = tmp_path / "out"
    options = dict(metrics="forward", null="none", compare="a:b", label=("a", "b"), out=str(out))
    analyze(request_for(made, made / "base", made / "vscale", **options), "")
    drawn = {path.stem for path in (out / "figures").glob("*.png")}
    assert drawn == {
        "figure07_sinks_and_activations",
        "figure12_value_norms",
        "figure13_theta",
        "massive_activations",
        "sink_heads",
        "sink_positions",
    }
    (setting,) = json.loads((out / "metrics.json").read_text())["settings"]
    model = setting["models"][0]
    assert model["untrained"] is None and "value_grad_norm" not in model["trained"]["arrays"]
    with np.load(out / "by_sequence.npz") as stored:
        assert {key.split("/")[2] for key in stored} == {"trained"}
        assert not any("gradient" in key for key in stored)
    assert [row["name"] for row in setting["comparisons"][0]][-1].startswith("|MLP out|")
    assert setting["table"][0]["gradient_sink_ratio"] is None


def test_null_init_draws_weights_anew(made, tmp_path):
    out = tmp_path / "out"
    analyze(request_for(made, made / "base", null="init", figures="6", out=str(out)), "")
    (setting,) = json.loads((out / "metrics.json").read_text())["settings"]
    assert "seed 3" in setting["models"][0]["null_source"]  # though the run kept its own


def test_steps_of_one_run_make_a_trajectory(made, copied, tmp_path):
    """No live reports: the analysed checkpoints themselves, labelled by their step, and the null at step 0."""
    later = copied / "checkpoints" / "step_00000040"
    shutil.copytree(copied / "checkpoints" / "step_00000020", later)
    (later / "state.json").write_text(json.dumps({"step": 40, "consumed_samples": 320}))
    out = tmp_path / "out"
    folders = [copied / "checkpoints" / name for name in ("step_00000020", "step_00000040")]
    analyze(request_for(made, *folders, figures="8,steps", null="init", tokens="48", out=str(out)), "")
    numbers = json.loads((out / "metrics.json").read_text())
    assert [row["label"] for row in numbers["settings"][0]["table"]][::2] == ["base step 20", "base step 40"]
    assert {path.stem for path in (out / "figures").glob("*.png")} == {
        "figure08_qkv_gradients_by_step",
        "trajectories",
    }


def test_packed_documents_are_told_apart(made, tmp_path):
    """A model trained with --reset-attention-mask: the unit is the document, and token 0 is each one's first."""
    run = write_run(tmp_path / "run", tiny_config(reset_attention_mask=True), (str(made / "text"),))
    out = tmp_path / "out"
    analyze(request_for(made, run, made / "base", figures="6", out=str(out), data=str(made / "text")), "")
    apart = json.loads((out / "metrics.json").read_text())["settings"][0]["models"][0]
    with np.load(out / "by_sequence.npz") as stored:
        assert len(stored["length_24/run/trained/loss"]) > len(stored["length_24/base/trained/loss"]) == 5
    assert "each document's first" in apart["details"]["documents"]
