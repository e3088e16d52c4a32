"""What cannot be analysed: one line that names the thing and says what to do."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from megasink.checkpoint.manifest import describe_file, write_manifest
from tests.analysis.runs import error_of, request_for, write_shards

ROOT = Path(__file__).parents[2]


def test_not_there(made):
    assert "no such folder" in error_of(request_for(made, made / "nowhere"))


def test_not_a_checkpoint(made, tmp_path):
    assert "not a checkpoint" in error_of(request_for(made, tmp_path))


@pytest.mark.parametrize("missing", ["model.safetensors", "config.yaml", "state.json"])
def test_half_written(made, copied, missing):
    checkpoint = copied / "checkpoints" / "step_00000020"
    (checkpoint / missing).unlink()
    line = error_of(request_for(made, checkpoint))
    assert "half-written" in line and missing in line


def test_truncated_weights(made, copied):
    path = copied / "checkpoints" / "step_00000020" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "damaged or not safetensors" in error_of(request_for(made, copied))


@pytest.mark.parametrize(("step", "metrics"), [(20, "all"), (0, "all"), (20, "forward"), (0, "forward")])
def test_weights_that_changed_since_they_were_written(made, copied, step, metrics):
    checkpoint = copied / "checkpoints" / f"step_{step:08d}"
    write_manifest(checkpoint, {path.name: describe_file(path) for path in checkpoint.iterdir()})
    with open(checkpoint / "model.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    line = error_of(request_for(made, copied, metrics=metrics))
    assert f"step_{step:08d} is damaged (model.safetensors has changed" in line


def test_nan_weights(made, copied):
    path = copied / "checkpoints" / "step_00000020" / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(weights, path)
    line = error_of(request_for(made, copied))
    assert "NaN" in line and "up_proj" in line


def test_pickles_are_never_executed(made, tmp_path):
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


def test_vocabulary_does_not_match(made, tmp_path):
    shards = write_shards(tmp_path / "large", 500)
    assert "vocabulary has 91 entries" in error_of(request_for(made, made / "base", data=shards))


def test_text_shorter_than_the_sequence(made, tmp_path):
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
        ({"out": ""}, "--out is empty"),
        ({"label": ("",)}, "a name of one line"),
        ({"label": ("a\nb",)}, "a name of one line"),
        ({"sink_pos": "0,9000"}, "have no position 9000"),
    ],
)
def test_wrong_request(made, changes, words):
    assert words in error_of(request_for(made, made / "base", **changes))


def test_no_checkpoint_at_all(made):
    assert "name at least one" in error_of(request_for(made))


def test_command_says_one_line(made):
    command = [sys.executable, "tools/analyze_ckpt.py", "nowhere", "--data", made / "text"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("megasink: nowhere: no such folder")
