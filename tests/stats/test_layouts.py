"""Full reports of two training steps are those of one process, whatever the layout. One set of processes per world."""

from functools import cache

import numpy as np
import pytest

from megasink.model.llama import blocks_of
from megasink.stats.recorder import Level, SinkRecorder
from megasink.train.distributed import start_distributed
from megasink.train.engine import TrainEngine
from tests.helpers.layouts import Case, batch_of, layout_of, run_config
from tests.helpers.ranks import run_ranks

STEPS = 2
SINGLE = Case("", micro_batch=2)
CASES = {
    1: [
        SINGLE.on("v_scale_gqa"),
        SINGLE.on("one_key_value_head_tied"),
        SINGLE.on("plain_mha"),
        SINGLE.on("documents"),
        Case("v_scale_gqa", micro_batch=8),
        Case("v_scale_gqa", recompute="selective"),
        Case("documents", recompute="full"),
    ],
    2: [
        Case("v_scale_gqa", tensor=2),
        Case("v_scale_gqa", tensor=2, sequence_parallel=True),
        Case("v_scale_gqa", pipeline=2),
        Case("v_scale_gqa"),
        Case("v_scale_gqa", zero=3, micro_batch=2),
        Case("one_key_value_head_tied", tensor=2, recompute="selective"),
        Case("plain_mha", tensor=2, sequence_parallel=True, recompute="full"),
        Case("documents", tensor=2, sequence_parallel=True),
        Case("documents", pipeline=2),
        Case("documents"),
    ],
    4: [
        Case("v_scale_gqa", tensor=2, pipeline=2, sequence_parallel=True, micro_batch=2),
        Case("v_scale_gqa", tensor=4, micro_batch=4),
        Case("one_key_value_head_tied", tensor=2, pipeline=2, micro_batch=4),
        Case("documents", tensor=2, zero=2, recompute="full", micro_batch=2),
    ],
}

HALF_BIN = 2 ** (1 / 128) - 1
RELATIVE = {"_abs_median": HALF_BIN, "_top1_over_median": HALF_BIN}
ABSOLUTE = {"attention_entropy": 1e-5, "_share": 1e-5, "_share_of_means": 1e-5, "_kurtosis": 1e-5}


def reports(cases: list[Case]) -> list[list[dict[str, np.ndarray]]]:
    """For each case the arrays of the full report of each step, as this rank has them."""
    return [reports_of(case) for case in cases]


def reports_of(case: Case, steps: int = STEPS, level: Level = "full") -> list[dict[str, np.ndarray]]:
    layout, config = layout_of(case), run_config(case)
    engine = TrainEngine(config, layout, start_distributed())
    recorder = SinkRecorder(config.model, layout, blocks_of(engine.model))
    found = []
    for step in range(steps):
        recorder.start(level)
        engine.train_batch(batch_of(case, step, layout))
        found.append(recorder.report(step, engine.gradient_scale).arrays)
    return found


@cache
def results(world: int) -> dict[Case, list]:
    """{case: what each rank found}."""
    ranks = run_ranks(world, reports, CASES[world])
    return {case: [rank[index] for rank in ranks] for index, case in enumerate(CASES[world])}


@pytest.mark.parametrize(
    ("world", "case"), [pytest.param(w, c, id=f"{w} ranks {c}") for w, cases in CASES.items() for c in cases]
)
def test_report_equals_one_process(world, case):
    expected = results(1)[SINGLE.on(case.model)][0]
    for rank in results(world)[case]:
        assert differences(rank, expected) == []


def test_the_second_step_differs_from_the_first():
    """Otherwise a recorder that keeps something from the first would not be seen."""
    first, second = results(1)[SINGLE.on("v_scale_gqa")][0]
    assert len(differences([second], [first])) > len(first) / 2


def differences(found: list[dict], expected: list[dict]) -> list[str]:
    """What is beyond rounding in any step, array by array, in words."""
    beyond = []
    for step, (ours, truth) in enumerate(zip(found, expected, strict=True)):
        assert set(ours) == set(truth)
        for name, array in truth.items():
            relative = next((bound for end, bound in RELATIVE.items() if name.endswith(end)), 1e-5)
            absolute = next((bound for end, bound in ABSOLUTE.items() if name.endswith(end)), 1e-12)
            if "query" in name:  # exactly 0 for a document's first token, which can only look at itself
                absolute = 1e-6 * np.nanmax(np.abs(array))
            a, b = ours[name], array
            if a.shape != b.shape:
                beyond.append(f"step {step} {name}: shape {a.shape} for {b.shape}")
            elif not np.allclose(a, b, rtol=relative, atol=absolute, equal_nan=True):
                worst = np.nanmax(np.abs(a - b) / (np.abs(b) + absolute))
                beyond.append(f"step {step} {name}: {worst:.1e} off")
    return beyond
