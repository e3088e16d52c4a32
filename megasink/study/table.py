"""The study's state as a table for the terminal."""

from collections import Counter

from megasink.study.run_folder_reader import FINISHED, RunProgress


def status_table(progress: list[RunProgress]) -> str:
    """One line a run under a header, columns aligned."""
    lines = [("arm", "seed", "state", "step", "loss", "valid", "tok/s", "left", "")]
    for run in progress:
        lines.append(
            (
                run.run.arm,
                str(run.run.seed),
                run.state,
                f"{run.step}/{run.total}",
                _figure(run.loss, ".4f"),
                _figure(run.valid_loss, ".4f"),
                _figure(run.tokens_per_second, ",.0f"),
                clock(run.remaining_s),
                run.note[:100],
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def headline(progress: list[RunProgress]) -> str:
    """`3 of 6 finished, 1 running, 2 queued`"""
    counts = Counter(run.state for run in progress)
    others = [f"{count} {state}" for state, count in counts.items() if state != FINISHED]
    return ", ".join([f"{counts[FINISHED]} of {len(progress)} finished", *others])


def clock(seconds: float | None) -> str:
    """`1:02:03`, `4:05`; a dash where nothing is known."""
    if seconds is None:
        return "-"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
