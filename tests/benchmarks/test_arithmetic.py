"""benchmarks/fp8_products.py and benchmarks/fast_path_losses.py on a CPU."""

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


LOSSES = [("fp8", "fp8", "bf16"), ("compiled", "compiled", "fp32"), ("order", "compiled-2", "plain-8")]


@pytest.mark.parametrize(("compare", "first", "other"), LOSSES)
def test_losses_are_compared_within_the_stated_bounds(compare, first, other, monkeypatch, tmp_path):
    tokens = write_tokens(tmp_path / "tokens", SHAPES["tiny"].vocab_size)
    run = [*SHAPES["tiny"].flags(), *["--micro-batch-size", "1", "--global-batch-size", "8", "--train-iters", "3"]]
    run += ["--data-path", str(tokens), "--sink-stats", "off"]
    words = f"fast_path_losses.py --compare {compare} --out {tmp_path}".split()
    monkeypatch.setattr(sys, "argv", [*words, "--", *run])
    fast_path_losses.main()
    found = json.loads((tmp_path / "fast_path_losses.json").read_text())
    losses = {name: np.array(values) for name, values in found["losses"].items()}
    assert len(losses[first]) == 3 and np.abs(losses[first] - losses[other]).max() > 0
    if compare == "order":  # on a CPU nothing is compiled: pairs of the same micro-batch are equal
        assert np.array_equal(losses["compiled-4"], losses["plain-4"])
        pairs = [np.abs(losses[f"compiled-{i}"] - losses[f"plain-{j}"]).mean() for i in (2, 4, 8) for j in (2, 4, 8)]
        assert found["compiled against plain"]["mean"] == pytest.approx(np.mean(pairs))
        assert found["of a kind"]["mean"] == pytest.approx(np.mean([pair for pair in pairs if pair > 0]))
    else:
        difference = losses[first] - losses[other]
        judged = found[f"{first} against {other}"]
        assert judged["largest"] == pytest.approx(np.abs(difference).max())
        assert judged["signed_mean"] == pytest.approx(difference.mean())
    monkeypatch.setattr(sys, "argv", [*words, "--mean", "0", "--", *run])
    with pytest.raises(UserError, match="bound of 0"):
        fast_path_losses.main()
