"""The live reports that a run left in its folder."""

from megasink.analysis.source import Source
from megasink.errors import UserError
from megasink.stats.report import SinkReport


def read_trajectory(source: Source) -> list[SinkReport]:
    """Reports of `sink_stats/` up to the checkpoint's step, by step; the null first. Damaged ones are left out."""
    if source.run_folder is None:
        return []
    folder = source.run_folder / "sink_stats"
    reports = {}
    for path in [folder / "null.npz", *sorted(folder.glob("step_*.npz"))]:
        try:
            report = SinkReport.load(path)
        except UserError:
            continue
        if report.meta["step"] <= source.step:
            reports.setdefault(report.meta["step"], report)
    return [reports[step] for step in sorted(reports)]
