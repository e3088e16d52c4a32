"""benchmarks/fp8_products.py and the fp8 pair of benchmarks/fast_path_losses.py on a CPU."""

import json
import sys

import fast_path_losses
import fp8_products
import numpy as np
import pytest
from throughput.megasink_case import write_tokens
from throughput.shapes import SHAPES

from megasink.errors import UserError


def test_every_weight_is_timed_in_each_way(monkeypatch, tmp_path, capsys):
    words = f"fp8_products.py --shape tiny --micro-batch-size 1 --repeats 2 --out {tmp_path}".split()
    monkeypatch.setattr(sys, "argv", words)
    fp8_products.main()
    rows = json.loads((tmp_path / "fp8_products.json").read_text())["rows"]
    assert [(row["out"], row["in"]) for row in rows] == SHAPES["tiny"].block_matrices
    assert [row["weight"] for row in rows] == ["q-k-v", "o", "gate-up", "down"]
    assert all(row[f"{kind}_s"] > 0 for row in rows for kind in ("bf16", "fp8", "products"))
    assert "gate-up" in capsys.readouterr().out


def test_losses_in_fp8_and_bf16_are_compared_within_the_stated_bounds(monkeypatch, tmp_path):
    tokens = write_tokens(tmp_path / "tokens", SHAPES["tiny"].vocab_size)
    run = [*SHAPES["tiny"].flags(), *["--micro-batch-size", "1", "--global-batch-size", "2", "--train-iters", "4"]]
    run += ["--data-path", str(tokens), "--sink-stats", "off"]
    words = f"fast_path_losses.py --pair fp8 --out {tmp_path}".split()
    monkeypatch.setattr(sys, "argv", [*words, "--", *run])
    fast_path_losses.main()
    found = json.loads((tmp_path / "fast_path_losses.json").read_text())
    difference = np.array(found["fp8"]) - np.array(found["bf16"])
    assert found["steps"] == 4 and 0 < found["largest"] == pytest.approx(np.abs(difference).max())
    assert found["signed_mean"] == pytest.approx(difference.mean())
    monkeypatch.setattr(sys, "argv", [*words, "--mean", "0", "--", *run])
    with pytest.raises(UserError, match="mean 0"):
        fast_path_losses.main()
