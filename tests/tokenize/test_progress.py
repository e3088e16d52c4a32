"""What a log shows of a long run."""

import re

import pytest

from megasink.tokenize.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """Each look at the clock is ten seconds after the last."""
    ticks = iter(range(0, 1000, 10))
    monkeypatch.setattr("megasink.tokenize.progress.time.perf_counter", lambda: next(ticks))


def test_a_log_has_a_line_every_half_minute(clock, capsys):
    with Progress(100_000_000) as progress:
        for _ in range(10):
            progress.update(5_000_000, 4_000_000, 1_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "megasink: 15 of 100 MB tokenized (15 %), 0:02:50 left, 0.4 MB/s, 0.10 M tokens/s",
        "megasink: 30 of 100 MB tokenized (30 %), 0:02:20 left, 0.4 MB/s, 0.10 M tokens/s",
        "megasink: 45 of 100 MB tokenized (45 %), 0:01:50 left, 0.4 MB/s, 0.10 M tokens/s",
    ]


def test_a_dataset_of_unknown_size_has_no_time_left(clock, capsys):
    with Progress(None) as progress:
        for _ in range(3):
            progress.update(0, 4_000_000, 1_000_000)
    assert re.fullmatch(r"megasink: 12 MB of text tokenized, .* M tokens/s\n", capsys.readouterr().err)
