"""benchmarks/plan_*.py: their configurations are ones that can be planned, and measured on one H100."""

import runpy
import sys

import plan_memory
import plan_published
import pytest


def test_what_is_to_be_measured_fits_an_h100():
    for configuration in plan_memory.CONFIGURATIONS:
        plan = plan_memory._plan(configuration, "h100")
        assert plan.fits, configuration.name


def test_published_runs_can_be_planned():
    for run in plan_published.RUNS:
        cells = plan_published.row(run).split("|")
        assert len(cells) == 10 and run.name in cells[1]


def test_help_is_help_and_no_table(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["plan_published.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(plan_published.__file__, run_name="__main__")
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and "usage: plan_published.py" in shown and "|---|" not in shown
