"""The throughput benchmark on a CPU: what is timed is what is claimed, and a broken case is a row, not a crash."""

import dataclasses
import json
import sys

import pytest
import torch
import train_throughput as benchmark
from throughput import bare, floor, megasink_case, report
from throughput.shapes import SHAPES
from throughput.work import BETAS, CLIP, EPSILON, LEARNING_RATE, WEIGHT_DECAY, Work

from megasink.config import ModelConfig
from megasink.errors import UserError
from megasink.model.flops import flops_per_token, num_parameters

TINY = Work("bare", SHAPES["tiny"], 2, (1, 2), steps=2, warmup=2, compile=False, scratch="/tmp")


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes_count_as_megasink_counts(shape):
    config = ModelConfig(**dataclasses.asdict(shape))
    assert shape.flops_per_token == flops_per_token(config)
    assert shape.num_parameters == num_parameters(config)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_bare_optimizer_is_clipped_adamw(accumulate):
    """Two steps of the compiled formula against torch's AdamW and clip_grad_norm_, on the same fp32 gradients."""
    generator = torch.Generator().manual_seed(1)
    sizes = [(8, 5), (7,)]
    start = [torch.randn(size, generator=generator).bfloat16() for size in sizes]
    weights = [torch.nn.Parameter(weight.clone()) for weight in start]
    references = [torch.nn.Parameter(weight.float()) for weight in start]
    groups = [
        {"params": references[:1], "weight_decay": WEIGHT_DECAY},
        {"params": references[1:], "weight_decay": 0.0},
    ]
    expected = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON)
    optimizer = bare.AdamW(weights, compile=False)
    for _ in range(2):
        for reference in references:
            reference.grad = torch.zeros_like(reference)
        for _ in range(accumulate):
            for weight, reference in zip(weights, references, strict=True):
                weight.grad = torch.randn(weight.shape, generator=generator).bfloat16()
                reference.grad += weight.grad.float()
            if accumulate > 1:
                optimizer.accumulate()
        optimizer.step()
        torch.nn.utils.clip_grad_norm_(references, CLIP)
        expected.step()
    for master, reference in zip(optimizer.masters, references, strict=True):
        torch.testing.assert_close(master, reference.detach().flatten(), rtol=1e-6, atol=1e-7)
    for weight, reference in zip(weights, references, strict=True):
        assert torch.equal(weight, reference.bfloat16())


def test_bare_loop_trains():
    rows = list(bare.measure(TINY))
    assert [row["accumulate"] for row in rows] == [1, 2]
    assert all(len(row["steps_s"]) == TINY.steps for row in rows)
    assert rows[1]["loss"] < rows[0]["loss"] < 5.6  # ln 256 = 5.545 at the start, on four batches seen again and again


def test_floor_times_every_product_and_attention():
    one, two = floor.measure(TINY)
    expected = {f"{rows}x{columns}" for rows, columns in [*TINY.shape.block_matrices, (256, 64)]}
    for kind in ("forward", "backward", "weight"):
        assert {name.removesuffix(f" {kind}") for name in one["parts_s"] if name.endswith(kind)} >= expected
    assert {"attention forward", "attention backward", "AdamW"} <= one["parts_s"].keys()
    for name in one["parts_s"].keys() - {"AdamW"}:
        assert two["parts_s"][name] == pytest.approx(2 * one["parts_s"][name])


@pytest.mark.parametrize("case", ["megasink", "megasink-fp8"])
def test_megasink_is_timed_through_its_training_command(tmp_path, case):
    work = dataclasses.replace(TINY, case=case, accumulate=(2,), scratch=str(tmp_path))
    (row,) = megasink_case.measure(work)
    assert len(row["steps_s"]) == work.steps and row["step_s"] > 0
    assert list(tmp_path.iterdir()) == []


def test_missing_peers_and_failures_are_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(benchmark.NEEDS, "liger", ("no-such-package",))
    flags = {"shape": "tiny", "micro-batch-size": 2, "accumulate": 1, "steps": 1, "warmup": 2, "cases": "bare,liger"}
    flags |= {"scratch": tmp_path, "out": tmp_path}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["train_throughput.py", *words])
    benchmark.main()
    rows = {row["case"]: row for row in json.loads((tmp_path / "throughput.json").read_text())["rows"]}
    assert rows["liger"]["status"] == "not installed: no-such-package"
    assert rows["bare"]["status"] == "ok" and rows["bare"]["over_bare"] == 1.0
    assert "not installed: no-such-package" in capsys.readouterr().out


def test_ratios_compare_only_the_same_point():
    def row(case: str, accumulate: int, rate: float) -> dict:
        point = {"shape": "1b", "seq_length": 2048, "micro_batch_size": 8, "accumulate": accumulate}
        return point | {"case": case, "status": "ok", "tokens_per_second": rate}

    rows = [row("floor", 1, 80.0), row("megasink", 1, 60.0), row("torchtitan", 1, 40.0), row("megatron", 1, 50.0)]
    megasink = report.with_ratios([*rows, row("transformers", 4, 70.0)])[1]
    assert (megasink["over_floor"], megasink["over_bare"], megasink["over_best_peer"]) == (0.75, None, 1.2)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"cases": "floor,nothing"}, "--cases"),
        ({"shape": "2b"}, "--shape"),
        ({"accumulate": "1,x"}, "--accumulate"),
        ({"accumulate": "0"}, "--accumulate"),
        ({"warmup": 1}, "--warmup"),
        ({"seq_length": "2k"}, "--seq-length"),
        ({"micro_batch_size": "0"}, "--micro-batch-size"),
        ({"scratch": "/nowhere"}, "--scratch"),
    ],
)
def test_bad_flags_are_one_line(change, word):
    with pytest.raises(UserError, match=word):
        benchmark.points(dataclasses.replace(benchmark.ThroughputConfig(scratch="/tmp"), **change))


def test_other_lengths_keep_the_tokens_of_a_micro_batch_down_to_one_sequence():
    config = benchmark.ThroughputConfig(cases="bare", seq_length="2048,8192,32768", scratch="/tmp")
    sizes = [(work.shape.seq_length, work.micro_batch_size) for _, work in benchmark.points(config)]
    assert sizes == [(2048, 8), (8192, 2), (32768, 1)]
    config = benchmark.ThroughputConfig(cases="bare", micro_batch_size="1,16", scratch="/tmp")
    assert [work.micro_batch_size for _, work in benchmark.points(config)] == [1, 16]
