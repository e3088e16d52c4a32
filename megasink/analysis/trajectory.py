"""What a run's figures were at earlier steps: its live reports, and its other checkpoints that were analysed."""

from megasink.analysis.measured import MeasuredModel
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


def add_analysed(models: list[MeasuredModel], sources: list[Source]) -> None:
    """Let the last of several analysed checkpoints of one run have the others' reports in its trajectory, and its null
    at step 0; where a live report and an analysed one are of the same step, the analysed one counts."""
    runs: dict[str, list[int]] = {}
    for at, source in enumerate(sources):
        if source.run_folder is not None:
            runs.setdefault(str(source.run_folder.resolve()), []).append(at)
    for places in runs.values():
        if len(places) < 2:
            continue
        last = max(places, key=lambda at: sources[at].step)
        reports = {report.meta["step"]: report for report in models[last].trajectory}
        if models[last].null is not None:
            reports[0] = models[last].null
        reports |= {sources[at].step: models[at].report for at in places}
        for at in places:
            models[at].trajectory = []
        models[last].trajectory = [reports[step] for step in sorted(reports)]
