"""The small parts that notice trouble: bad numbers, signals, full disks, hangs, and where numbers stop being finite."""

import errno
import json
import math
import os
import signal
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist

from megasink.model.llama import Llama, blocks_of, token_losses
from megasink.parallel.layout import ParallelLayout
from megasink.stats.recorder import SinkRecorder
from megasink.stats.report import SCHEMA, SinkReport
from megasink.train import record_file
from megasink.train.bad_numbers import SPIKE_WINDOW, BadNumbers
from megasink.train.diagnosis import where_it_begins
from megasink.train.record_file import RecordFile
from megasink.train.run_folder import RunFolder
from megasink.train.sink_charts import draw_charts
from megasink.train.stop import SIGNALS, StopRequest
from megasink.train.straggler import StragglerReport
from megasink.train.watchdog import summary
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import tiny_batch, tiny_config


def test_a_full_disk_under_the_console_ends_no_run(monkeypatch, tmp_path):
    with pytest.raises(OSError, match="No space"), open("/dev/full", "w") as full:  # at its end, of what it still holds
        monkeypatch.setattr(sys, "stdout", full)
        RunFolder(tmp_path).say("step 1")
    monkeypatch.undo()
    assert (tmp_path / "train.log").read_text() == "step 1\n"


def test_charts_of_a_step_whose_gradients_are_nan_are_drawn():
    config = tiny_config()
    model = Llama(config, seed=1)
    recorder = SinkRecorder(config, ParallelLayout(), blocks_of(model))
    tokens, labels = tiny_batch(config)
    recorder.start("full")
    (token_losses(model(tokens), labels, config, ParallelLayout()).sum() * math.nan).backward()
    assert len(draw_charts(recorder.report(step=0), null=None)) == 2


def followed(losses, norms=None, max_in_a_row=3):
    events = []
    numbers = BadNumbers(max_in_a_row, 4, skipped=0, report=lambda event, text: events.append(event))
    stops = []
    for step, loss in enumerate(losses, start=1):
        norm = 1.0 if norms is None else norms[step - 1]
        numbers.follow(step, torch.tensor(loss), norm)
        stops.append(numbers.check(before=step + 1))
    return numbers, events, stops


def test_steps_that_are_not_finite_are_counted_with_their_samples():
    numbers, events, stops = followed([1.0, math.nan, 1.0, 1.0], [1.0, 1.0, torch.tensor(math.inf), -1.0])
    assert numbers.skipped == 3 and stops == [False, False, False, True]
    assert [(event["step"], event["first_sample"], event["last_sample"]) for event in events] == [
        (2, 4, 7),
        (3, 8, 11),
        (4, 12, 15),
    ]


def test_a_good_step_begins_the_count_in_a_row_again():
    _, _, stops = followed([math.nan, math.nan, 1.0, math.nan, math.nan], max_in_a_row=3)
    assert not any(stops)


def test_numbers_are_read_one_step_late():
    numbers = BadNumbers(1, 4, skipped=0, report=lambda event, text: None)
    numbers.follow(1, torch.tensor(math.nan), 1.0)
    assert not numbers.check(before=1) and numbers.check(before=2)


def test_a_loss_far_above_the_ones_before_is_a_spike_and_noise_is_not():
    noise = np.random.default_rng(0).normal(3.0, 0.02, SPIKE_WINDOW + 50).tolist()
    assert followed(noise)[1] == []
    _, events, _ = followed([*noise, 4.0])
    (spike,) = events
    assert (spike["event"], spike["step"], spike["loss"]) == ("loss_spike", len(noise) + 1, 4.0)
    assert (spike["first_sample"], spike["last_sample"]) == (4 * len(noise), 4 * len(noise) + 3)


@pytest.fixture
def handlers():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_wish(handlers, number):
    stop = StopRequest(None)
    stop.heed_interrupt()
    assert not stop.wanted()
    signal.raise_signal(number)
    signal.raise_signal(number)  # a launcher's second of the same moment changes nothing
    assert stop.wanted() and stop.reason == f"received {number.name}"


def test_the_time_limit_is_a_wish(handlers):
    assert StopRequest(0.0).wanted() and not StopRequest(1000.0).wanted()


def test_records_wait_while_the_disk_is_full_and_a_torn_line_is_taken_back(tmp_path, monkeypatch):
    said = []
    records = RecordFile(tmp_path / "m.jsonl", 0, said.append)
    records.append({"step": 1})

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(record_file.os, "fsync", full)
    records.append({"step": 2})
    records.append({"step": 3})
    assert (tmp_path / "m.jsonl").read_text() == '{"step": 1}\n' and len(said) == 1
    monkeypatch.setattr(record_file.os, "fsync", os.fdatasync)
    records.append({"step": 4})
    assert [json.loads(line)["step"] for line in (tmp_path / "m.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


def test_what_is_not_finite_is_null_since_json_knows_no_nan(tmp_path):
    records = RecordFile(tmp_path / "m.jsonl", 0, print)
    records.append({"step": 1, "loss": math.nan, "grad_norm": math.inf, "lr": 0.5})

    def refuse(word):
        raise AssertionError(word)

    line = json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=refuse)
    assert line == {"step": 1, "loss": None, "grad_norm": None, "lr": 0.5}


def slow_second_rank(readings: int) -> tuple[list[dict], list[dict]]:
    """Both ranks' readings and events, the second one's work taking ten times as long."""
    events: list[dict] = []
    straggler = StragglerReport(torch.device("cpu"), lambda event, text: events.append(event))
    seconds = 0.1 if dist.get_rank() == 1 else 0.01
    straggler._timed_work = lambda: lambda: seconds
    straggler.data_wait_s = 4.0 * dist.get_rank()
    found = []
    for step in range(readings):
        straggler.begin(step, steps=2)
        found.append(straggler.read())
    return found, events


def test_a_slow_rank_is_named_by_all_after_three_readings_each_told_at_the_next():
    for (first, *readings), events in run_ranks(2, slow_second_rank, 4):
        assert set(first.values()) == {None}
        assert [reading["slowest_rank"] for reading in readings] == [1, 1, 1]
        assert readings[0]["slowest_over_median"] == pytest.approx(10)
        assert [reading["data_wait_s"] for reading in readings] == [2.0, 0.0, 0.0]
        assert [(event["step"], event["rank"]) for event in events] == [(2, 1)]


def report(**not_finite):
    """Three layers of ones, except that NAME=LAYER holds a NaN there."""
    arrays = {name: np.ones((3, 2)) for name in ("value_norm", "mlp_out_norm", "hidden_norm", "value_grad_norm")}
    for name, layers in not_finite.items():
        arrays[name][layers, 1] = np.nan
    return SinkReport({"schema": SCHEMA, "num_layers": 3}, arrays)


@pytest.mark.parametrize(
    ("not_finite", "says"),
    [
        ({"hidden_norm": [1, 2], "value_grad_norm": [0, 1, 2]}, "forward pass is not finite from layer 1 on"),
        ({"value_grad_norm": [0, 1]}, "the backward pass is not from layer 1 down"),
        ({}, "every layer's activations and gradients were finite"),
    ],
)
def test_the_first_layer_that_is_not_finite_is_named(not_finite, says):
    assert says in where_it_begins(report(**not_finite))


def test_the_rank_that_says_nothing_and_the_one_that_stands_apart_come_first(tmp_path):
    for rank, where in enumerate(["all_reduce", "all_reduce", "sleep"]):
        described = {"step": 5, "phase": "training", "where": where}
        (tmp_path / f"rank_{rank:05d}.json").write_text(json.dumps(described))
    lines = summary(sorted(tmp_path.glob("*.json")), world_size=4, silent_s=60.0)
    assert [line.split(":")[1].strip() for line in lines[1:]] == ["rank 3", "rank 2", "rank 0, 1"]
