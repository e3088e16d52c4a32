"""A run in two halves is the run in one piece, to the last bit; nothing is lost or repeated in its records."""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from megasink.checkpoint.manifest import describe_file, read_entries, write_manifest
from tests.helpers.jobs import TIMES, metrics, metrics_without_times, train

FLAGS = shlex.split(
    """
    --lr-decay-style constant --lr-warmup-iters 3 --save-interval 3 --eval-interval 3 --eval-iters 1 --split 80,20,0
    --sink-stats-interval 2 --v-scale on
    """
)


@pytest.fixture(scope="module", params=[0, 1, 2, 3], ids="ZeRO-{}".format)
def whole_and_halves(request, tokens, tmp_path_factory):
    """The same six steps on two data-parallel ranks, in one piece and in two halves."""
    folder = tmp_path_factory.mktemp("resume")
    flags = ["--data-path", tokens, *FLAGS, "--zero-stage", request.param]
    train(*flags, "--save", folder / "whole", "--train-iters", 6, ranks=2)
    train(*flags, "--save", folder / "halves", "--train-iters", 3, ranks=2)
    # what a killed job leaves: lines after its last checkpoint, the last one torn
    with open(folder / "halves" / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "loss": 1.0}\n{"step": 5, "lo')
    second = train(*flags, "--save", folder / "halves", "--train-iters", 6, "--auto-resume", ranks=2)
    assert second.lines("megasink: resuming after step 3"), second.output
    return folder / "whole", folder / "halves"


def test_metrics_are_equal_bit_for_bit(whole_and_halves):
    whole, halves = map(metrics_without_times, whole_and_halves)
    assert [record["step"] for record in whole] == list(range(1, 7))
    assert whole == halves


def test_weights_are_equal_bit_for_bit(whole_and_halves):
    whole, halves = (load_file(run / "checkpoints" / "step_00000006" / "model.safetensors") for run in whole_and_halves)
    assert whole.keys() == halves.keys()
    assert all(np.array_equal(whole[name], halves[name]) for name in whole)


def test_sink_reports_are_equal_bit_for_bit(whole_and_halves):
    names = ["null.npz", *(f"step_{step:08d}.npz" for step in (0, 2, 4))]
    for name in names:
        whole, halves = (np.load(run / "sink_stats" / name, allow_pickle=False) for run in whole_and_halves)
        assert whole.files == halves.files
        for array in whole.files:
            np.testing.assert_array_equal(whole[array], halves[array], err_msg=f"{name}: {array}")
    whole, halves = ((run / "sink_stats" / "scalars.jsonl").read_text() for run in whole_and_halves)
    assert whole == halves


def test_a_metrics_line_says_what_the_documents_promise(whole_and_halves):
    promised = {"step", "loss", "grad_norm", "lr", "consumed_samples", "consumed_tokens", *TIMES}
    for record in metrics(whole_and_halves[0]):
        assert record.keys() - {"valid_loss"} >= promised
        assert ("valid_loss" in record) == (record["step"] % 3 == 0)
        assert record["consumed_samples"] == 4 * record["step"]
        assert record["consumed_tokens"] == 64 * record["step"]
        assert record["mfu"] is None and record["step_time_s"] > 0 and record["grad_norm"] > 0


@contextmanager
def edited(state: Path) -> Iterator[dict]:
    """A checkpoint's state.json, to be changed; its manifest then agrees with it."""
    described = json.loads(state.read_text())
    yield described
    state.write_text(json.dumps(described))
    write_manifest(state.parent, read_entries(state.parent) | {state.name: describe_file(state)})


@pytest.mark.parametrize("stage", [1, 3])
def test_optimizer_state_in_another_order_moves_by_name_or_is_refused(stage, tokens, tmp_path):
    """Until 2026-11-28 thetas lay between norm weights; read by position, their moments would be others'."""
    before = "import megasink.train.optimizer as o; o.ALIGNED_ELEMENTS = 1; from megasink.train import main; main()"
    flags = ["--data-path", tokens, *FLAGS, "--precision", "bf16", "--zero-stage", stage]
    train(*flags, "--save", tmp_path / "whole", "--train-iters", 6)
    train(*flags, "--save", tmp_path / "halves", "--train-iters", 3, program=before)
    state = tmp_path / "halves" / "checkpoints" / "step_00000003" / "state.json"
    with edited(state) as described:
        assert described["layout"].pop("thetas") == "last"  # as checkpoints of then have it
    second = ["--save", tmp_path / "halves", "--train-iters", 6, "--auto-resume"]
    if stage == 3:
        refused = train(*flags, *second, expect=2)
        assert refused.lines("megasink:")[-1].count("thetas None (now last)") == 1, refused.output
        return
    train(*flags, *second)
    whole, halves = (metrics_without_times(tmp_path / name) for name in ("whole", "halves"))
    assert [record["loss"] for record in halves] == pytest.approx([record["loss"] for record in whole], rel=1e-5)


def test_growth_is_not_warned_of_again_after_a_resume(tokens, tmp_path):
    """With a threshold below what untrained weights show: this model would not grow in so few steps."""
    program = """
from dataclasses import replace
from megasink.stats import alerts
alerts.GROWTHS = (replace(alerts.GROWTHS[0], times_null=0.5),)
from megasink.train import main
main()
"""
    flags = ["--data-path", tokens, *FLAGS, "--save", tmp_path, "--auto-resume"]

    def warnings(steps: int) -> list[str]:
        outcome = train(*flags, "--train-iters", steps, program=program)
        return [line.split(": |x_out|")[0] for line in outcome.lines("warning: step")]

    assert warnings(3) == ["warning: step 0"]
    assert warnings(6) == []
    with edited(tmp_path / "checkpoints" / "step_00000006" / "state.json") as state:
        del state["growth_warns_at"]  # as checkpoints were until 2026-11-28
    assert warnings(9) == ["warning: step 6"]
