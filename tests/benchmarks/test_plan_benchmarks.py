"""benchmarks/plan_*.py: their configurations are ones that can be planned, and measured on one H100."""

import plan_memory
import plan_published


def test_what_is_to_be_measured_fits_an_h100():
    for configuration in plan_memory.CONFIGURATIONS:
        plan = plan_memory._plan(configuration, "h100")
        assert plan.fits, configuration.name


def test_published_runs_can_be_planned():
    for run in plan_published.RUNS:
        cells = plan_published.row(run).split("|")
        assert len(cells) == 10 and run.name in cells[1]
