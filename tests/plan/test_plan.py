"""tools/plan.py: what it prints, writes, refuses and suggests."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from megasink.config.cli import parse_cli
from megasink.errors import UserError
from megasink.plan.command import PlanCommand, print_plan
from megasink.plan.plan import Machine, make_plan
from megasink.plan.search import changed_flags, fitting_plans
from megasink.plan.timing import StepTime, bubble_fraction

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def command(preset: str, *flags: object) -> PlanCommand:
    config = ["--config", EXAMPLES / preset, "--vocab-size", 32000, *flags]
    return parse_cli(PlanCommand, list(map(str, config)))


def test_a_plan_is_one_screen_and_says_who_holds_what(capsys):
    print_plan(command("pretrain_70b.yaml", "--nodes", 64), "given")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 50 and max(map(len, lines)) <= 160
    said = "\n".join(lines)
    assert "512 h100" in said and "ranks 0-127" in said and "blocks 60-79, norm, output" in said
    assert "tensor rank 7   query heads 56-63, key-value heads 7" in said and "MFU" in said and "GPU-hours" in said


def test_json_holds_the_same_plan(tmp_path, capsys):
    file = tmp_path / "plan.json"
    print_plan(command("pretrain_7b.yaml", "--nodes", 8, "--json", file, "--target-tokens", 1e12), "given")
    plan = json.loads(file.read_text())
    assert plan["gpus"] == 64 and plan["target_tokens"] == 1e12
    assert plan["peak_memory"] == max(stage["memory"]["total"] for stage in plan["stages"])
    assert plan["gpu_hours"] == pytest.approx(24 * plan["days"] * 64)
    assert plan["stages"][0]["ranks"] == [0, 64] and plan["tensor_ranks"][1]["vocabulary_rows"] == [16000, 32000]
    assert f"{plan['step_time_s']:.3f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--target-tokens", "nan"], "--target-tokens nan"),
        (["--target-tokens", "inf"], "--target-tokens inf"),
        (["--json="], "--json is empty"),
        (["--gpu", "a100", "--fp8", "hybrid"], "an a100 cannot multiply fp8"),
    ],
)
def test_a_question_without_an_answer_is_one_line(flags, says, capsys):
    with pytest.raises(UserError, match=says):
        print_plan(command("pretrain_7b.yaml", "--nodes", 8, *flags), "given")
    assert capsys.readouterr().out == ""


def test_what_does_not_fit_is_refused_with_flags_that_do(capsys):
    asked = command("pretrain_7b.yaml", "--micro-batch-size", 16, "--tensor-model-parallel-size", 1)
    asked.parallel.sequence_parallel = False
    with pytest.raises(UserError, match="the nearest layout that fits") as refused:
        print_plan(asked, "given")
    assert "DOES NOT FIT" in capsys.readouterr().out
    flags = str(refused.value).split("s a step): ")[1].split(";")[0].split()
    print_plan(command("pretrain_7b.yaml", "--micro-batch-size", 16, *_without_tp(flags), *flags), "given")
    assert "DOES NOT FIT" not in capsys.readouterr().out


def _without_tp(flags: list[str]) -> list[str]:
    """The layout that was asked for, where the suggestion leaves it alone."""
    asked = []
    if "--tensor-model-parallel-size" not in flags:
        asked += ["--tensor-model-parallel-size", "1"]
    if "--sequence-parallel" not in flags:
        asked += ["--no-sequence-parallel"]
    return asked


def test_a_model_too_large_for_the_machine_has_no_suggestion():
    with pytest.raises(UserError, match="no layout of 1 GPUs fits"):
        print_plan(command("pretrain_70b.yaml", "--gpus-per-node", 1, *_one_gpu()), "given")


def _one_gpu() -> list[str]:
    sizes = ["--tensor-model-parallel-size", "1", "--pipeline-model-parallel-size", "1"]
    return [*sizes, "--no-sequence-parallel", "--global-batch-size", "64"]


def test_layouts_that_contradict_the_machine_are_one_line():
    with pytest.raises(UserError, match="24 ranks were started"):
        print_plan(command("pretrain_70b.yaml", "--nodes", 3), "given")


def test_search_ranks_what_fits_fastest_first():
    config = command("pretrain_7b.yaml", "--nodes", 2).run_config()
    plans = fitting_plans(config, Machine.of(2, 8, "a100-40gb"))
    assert len(plans) > 10 and all(plan.fits for plan in plans)
    assert [plan.step_time for plan in plans] == sorted(plan.step_time for plan in plans)
    assert changed_flags(config, config) == [] and changed_flags(config, plans[0].config)


def test_more_gpus_and_micro_batches_move_time_the_right_way():
    config = command("pretrain_7b.yaml").run_config()
    few, many = (make_plan(config, Machine.of(nodes, 8, "h100")) for nodes in (4, 16))
    assert many.step_time < few.step_time < 5 * many.step_time
    assert many.mfu < few.mfu < 0.735
    assert bubble_fraction(4, 4) > bubble_fraction(4, 32) and bubble_fraction(1, 8) == 0


def test_an_h200_is_an_h100_with_more_and_faster_memory():
    config = command("pretrain_7b.yaml", "--micro-batch-size", 8).run_config()
    h100, h200 = (make_plan(config, Machine.of(1, 8, gpu)) for gpu in ("h100", "h200"))
    assert h200.fits and not h100.fits and h200.peak == h100.peak
    assert h200.times[h200.slowest].matmul == h100.times[h100.slowest].matmul and h200.step_time < h100.step_time


def test_attention_takes_a_larger_share_of_long_sequences_at_a_better_rate():
    def of(length: int, micro_batch: int, *flags) -> float:
        words = ["--seq-length", length, "--micro-batch-size", micro_batch, "--global-batch-size", micro_batch, *flags]
        plan = make_plan(command("pretrain_1b.yaml", *words).run_config(), Machine.of(1, 1, "h200"))
        return plan.times[plan.slowest].attention

    short, long = of(2048, 16), of(32768, 1)
    assert long / short == pytest.approx(16 * 0.307 / 0.440, rel=0.03)  # as measured
    assert of(2048, 16, "--head-dim", 64) == pytest.approx(short / 2 / 0.8)


def test_small_micro_batches_wait_for_the_host_unless_they_are_graphs():
    def of(length: int, *flags: str) -> StepTime:
        words = ["--seq-length", length, "--micro-batch-size", 1, *flags]
        plan = make_plan(command("pretrain_1b.yaml", *words).run_config(), Machine.of(1, 8, "h100"))
        return plan.times[plan.slowest]

    few, fewer = of(256), of(128)
    assert fewer.matmul < 0.6 * few.matmul
    assert fewer.total == pytest.approx(few.total, rel=0.02)
    graph = of(128, "--cuda-graph")
    assert graph.matmul == fewer.matmul and graph.total < 0.5 * fewer.total


def test_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["plan.py", str(EXAMPLES / "pretrain_1b.yaml"), "--gpu", "a100"])
    runpy.run_path(str(ROOT / "tools" / "plan.py"), run_name="__main__")
    assert "8 a100 (1 x 8)" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["plan.py", str(EXAMPLES / "pretrain_7b.yaml"), "--gpu", "a100-40gb"])
    with pytest.raises(SystemExit) as refused:
        runpy.run_path(str(ROOT / "tools" / "plan.py"), run_name="__main__")
    (line,) = capsys.readouterr().err.splitlines()
    assert refused.value.code == 2 and line.startswith("megasink: needs")
    monkeypatch.setattr(sys, "argv", ["plan.py", "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "tools" / "plan.py"), run_name="__main__")
    assert "plan.py [RUN.yaml]" in capsys.readouterr().out.splitlines()[0]
