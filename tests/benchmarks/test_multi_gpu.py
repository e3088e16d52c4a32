"""benchmarks/multi_gpu on a CPU: every script runs to its table, finds what is planted, and judges rightly."""

import json
import sys

import numpy as np
import pytest
from multi_gpu import faults, parity, scaling
from multi_gpu.exposed import communication
from throughput.shapes import SHAPES

from megasink.errors import UserError
from megasink.stats.report import SinkReport
from megasink.train.trace import Kernel, category_of


def run(monkeypatch, program, out, **flags: object) -> tuple[int, list[dict]]:
    """Exit code, and the rows of the JSON file."""
    flags |= {"out": out, "scratch": out / "scratch"}
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    monkeypatch.setattr(sys, "argv", ["program", *words])
    with pytest.raises(SystemExit) as ended:
        program.main()
    (path,) = out.glob("*.json")
    return int(ended.value.code), json.loads(path.read_text())["rows"]


def test_parity_compares_a_layout_with_one_rank_and_names_what_was_not_run(monkeypatch, tmp_path, capsys):
    code, rows = run(monkeypatch, parity, tmp_path, cases="tp2,tp4", precisions="fp32", ranks=2)
    one, split, too_large = rows
    assert one["status"] == split["status"] == "ok" and code == 0, rows
    assert 0.0 < split["statistics"] < 1e-3 and len(split["each_statistic"]) > 20
    assert too_large["status"] == "not run: needs 4 ranks, 2 are here"
    assert "tp2" in capsys.readouterr().out


def test_a_difference_in_one_statistic_is_seen():
    expected = SinkReport({}, {"value_norm": np.array([1.0, 2.0]), "attention_sink": np.array([np.nan, 0.5])})
    close = SinkReport({}, {"value_norm": np.array([1.0, 2.002]), "attention_sink": np.array([np.nan, 0.5])})
    found = parity.array_differences(expected, close)
    assert found["value_norm"] == pytest.approx(0.002 / 5**0.5) and found["attention_sink"] == 0.0
    places = [SinkReport({}, {"gradient_sink_position": np.array(at)}) for at in ([[0, 3, 0, 5]], [[0, 3, 7, 5]])]
    assert parity.array_differences(*places) == {"gradient_sink_position": 0.25}
    other = SinkReport({}, {"attention_sink": np.array([0.1, 0.5])})
    assert parity.array_differences(expected, other) == {"value_norm": float("inf"), "attention_sink": float("inf")}


def test_scaling_measures_each_point_through_the_training_command(monkeypatch, tmp_path, capsys):
    flags = {"shape": "tiny", "micro-batch-size": 1, "accumulate": 2, "steps": 2, "warmup": 2, "scaling": "weak"}
    code, rows = run(monkeypatch, scaling, tmp_path, splits="pp", **flags)
    assert code == 0 and [row["ranks"] for row in rows] == [1, 2], rows
    one, two = rows
    assert (one["sequences"], two["sequences"], two["micro_batches"]) == (2, 4, 4)
    assert two["bubble_leaves"] == 4 / 5 and two["goal"] == pytest.approx(0.95 * 4 / 5)
    assert all(len(row["steps_s"]) == 2 and row["tokens_per_second_per_gpu"] > 0 for row in rows)
    assert all(row["planned"]["peak_gib"] > 0 and scaling.over_plan(row, "step_s") > 0 for row in rows)
    assert "weak" in capsys.readouterr().out


def test_efficiency_is_against_one_gpu_of_the_same_split():
    def row(scaling: str, split: str, ranks: int, rate: float) -> dict:
        return {"scaling": scaling, "split": split, "ranks": ranks, "status": "ok", "tokens_per_second_per_gpu": rate}

    rows = [row("weak", "zero1", 1, 100.0), row("weak", "tp", 1, 90.0), row("weak", "zero1", 8, 94.0)]
    rows += [row("weak", "tp", 8, 81.0), row("strong", "tp", 8, 81.0)]
    *_, data, tensor, strong = scaling.with_efficiency(rows)
    assert (data["efficiency"], data["status"]) == (0.94, "below its goal")
    assert (tensor["efficiency"], tensor["status"]) == (0.9, "ok")
    assert "efficiency" not in strong


def test_only_splits_that_fit_are_measured():
    assert scaling.fits(SHAPES["1b"], "tp", 8) and not scaling.fits(SHAPES["tiny"], "pp", 4)


def test_exposed_communication_is_what_no_computation_covers():
    talks = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
    kernels = [
        Kernel("gemm", "matmul", 0.0, 1000.0),
        Kernel(talks, category_of(talks), 500.0, 1500.0),  # half a millisecond is covered
        Kernel("gemm", "matmul", 3000.0, 1000.0),
    ]
    expected = {"communication_ms": 1.5, "exposed_ms": 1.0, "computing_ms": 2.0, "idle_ms": 1.0}
    assert communication(kernels, steps=1) == expected
    assert communication(kernels, steps=2)["exposed_ms"] == 0.5


def test_a_kill_is_noticed_and_timed_and_half_the_ranks_go_on(monkeypatch, tmp_path, capsys):
    code, rows = run(monkeypatch, faults, tmp_path, cases="kill,resume", ranks=2, precision="fp32")
    assert code == 0 and [row["status"] for row in rows] == ["ok"] * 2, rows
    kill, resume = rows
    assert kill["codes"] == [76, -9] and kill["all_gone_s"] < 60 and kill["said"]
    assert resume["resumed_on"] == 1 and 0 <= resume["largest_loss_difference"] < 1e-5
    assert "kill" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("program", "flags", "word"),
    [
        (parity, {"cases": "tp3"}, "--cases"),
        (parity, {"precisions": "fp8"}, "--precisions"),
        (scaling, {"shape": "2b"}, "--shape"),
        (scaling, {"ranks": "two"}, "--ranks"),
        (scaling, {"peers": "nemo"}, "--peers"),
        (faults, {"ranks": 3}, "--ranks"),
        (faults, {"precision": "fp16"}, "--precision"),
    ],
)
def test_bad_flags_are_one_line(monkeypatch, tmp_path, program, flags, word):
    with pytest.raises(UserError, match=word):
        run(monkeypatch, program, tmp_path, **flags)
