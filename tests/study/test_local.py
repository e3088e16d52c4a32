"""A real study on this machine: interrupted, gone on with, one arm diverging, the arms seeing the same data."""

import signal
from pathlib import Path

import filelock
import pytest

from megasink.errors import UserError
from megasink.study.command import StudyRequest, run_study
from tests.helpers.jobs import ROOT, metrics, write_tokens
from tests.study.files import TINY_FLAGS, write_study
from tests.study.launching import LAUNCHER, start, until


def again(study: Path) -> int:
    """In this process; the runs are processes of their own."""
    return run_study(StudyRequest(study=str(study)))


def test_interrupted_and_gone_on_with(tmp_path, monkeypatch, capsys):
    """Ctrl-C reaches the rank, which saves, not its launcher; the study then finishes one arm and marks the other."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_tokens(tmp_path / "tokens")
    flags = TINY_FLAGS | {"data-path": str(tmp_path / "tokens"), "save-interval": "0"}
    keys = {"arms": {"steady": {}, "broken": {"lr": "1e36", "max-skipped-steps": "2"}}}
    (tmp_path / "launch.sh").write_text(LAUNCHER)
    keys["script"] = str(tmp_path / "launch.sh")
    study = write_study(tmp_path / "s.yaml", flags=flags | {"train-iters": "1000000"}, **keys)
    out = tmp_path / "out"

    first = start(study)
    until(first, (out / "steady_seed1234" / "metrics.jsonl").exists)
    first.send_signal(signal.SIGINT)
    said = first.communicate(timeout=120)[0]
    assert first.returncode == 75, said
    assert "stopped; the same command goes on" in said and "Stopped after step" in said
    done = metrics(out / "steady_seed1234")[-1]["step"]
    assert (out / "steady_seed1234" / "checkpoints" / f"step_{done:08d}" / "manifest.json").is_file()
    assert not (out / "broken_seed1234").exists()

    total = done + 3
    keys["flags"] = flags | {"train-iters": str(total)}
    assert again(write_study(study, **keys)) == 1
    said = capsys.readouterr().out
    assert f"steady_seed1234: going on after step {done} of {total}" in said
    assert "1 of 2 finished, 1 diverged" in said
    steps = [record["step"] for record in metrics(out / "steady_seed1234")]
    assert steps == list(range(1, total + 1))
    steady, broken = (metrics(out / f"{arm}_seed1234")[0] for arm in ("steady", "broken"))
    assert steady["loss"] == broken["loss"]  # the same weights and the same samples

    assert again(study) == 1
    said = capsys.readouterr().out
    assert "steady_seed1234: finished before" in said and "broken_seed1234: diverged after step" in said
    with filelock.FileLock(out / ".study.lock"), pytest.raises(UserError, match="another process runs this study"):
        again(study)
    keys["flags"] = keys["flags"] | {"weight-decay": "0.3"}
    with pytest.raises(UserError, match=r"begun with weight_decay 0\.1, the study now says 0\.3"):
        again(write_study(study, **keys))


def test_a_log_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    study = write_study(tmp_path / "s.yaml", flags=TINY_FLAGS)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "logs").write_text("")
    with pytest.raises(UserError, match=r"logs.*: cannot be written \(File exists\)"):
        again(study)
