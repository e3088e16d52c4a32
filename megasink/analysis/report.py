"""The report: one self-contained HTML file, with pictures and numbers as files beside it."""

import math
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from megasink.analysis import numbers
from megasink.analysis.about import DEFINITIONS
from megasink.analysis.bootstrap import Interval
from megasink.analysis.figures import Drawing
from megasink.analysis.files import write_whole
from megasink.analysis.measured import MeasuredModel
from megasink.analysis.section import Section
from megasink.analysis.summary import PAPER_MODEL, PAPER_ROWS, TableRow, sink_rows, table_rows, threshold_rows


def write_report(folder: Path, sections: list[Section], about: dict[str, str]) -> Path:
    """Write report.html, figures/*.png and *.svg, and the numbers beside them; returns the HTML file's path.

    `about` says what was measured and how, as name -> text, in the order to show it. With several sections each has a
    folder of figures. The HTML is written last, so it never shows what is not there.
    """
    for section in sections:
        place = folder / "figures" / (section.sequences.name if len(sections) > 1 else "")
        for picture in section.pictures:
            write_whole(place / f"{picture.drawing.slug}.png", picture.png)
            write_whole(place / f"{picture.drawing.slug}.svg", picture.svg)
    write_whole(folder / "metrics.json", numbers.metrics_json(sections, about))
    write_whole(folder / "by_sequence.npz", numbers.by_sequence_npz(sections))
    write_whole(folder / "layers.csv", numbers.layers_csv(sections))
    write_whole(folder / "heads.csv", numbers.heads_csv(sections))
    page = folder / "report.html"
    write_whole(page, _html(sections, about))
    return page


def _html(sections: list[Section], about: dict[str, str]) -> str:
    environment = Environment(loader=PackageLoader("megasink.analysis"), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"number": format_number, "loss": _loss, "mean_max": _mean_and_max}
    environment.filters |= {"ratio": _ratio, "interval": _interval_html, "rows": table_rows}
    environment.filters |= {"sinks": sink_rows, "thresholds": threshold_rows}
    environment.filters |= {"numbered": _numbered}
    models = sections[0].models
    return environment.get_template("report.html.j2").render(
        title="Sink report: " + ", ".join(model.label for model in models),
        models=models,
        sections=sections,
        paper_model=PAPER_MODEL,
        paper_rows=PAPER_ROWS,
        about=about,
        definitions=DEFINITIONS,
    )


def _numbered(drawing: Drawing) -> str:
    """The title, with the paper's figure number where there is one."""
    return f"Figure {drawing.number}: {drawing.title}" if drawing.number.isdecimal() else drawing.title


def format_number(value: float, digits: int = 4) -> str:
    """`value` to four significant digits, whole from 1,000 on."""
    if math.isnan(value):
        return "-"
    return f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"


def _loss(value: float) -> str:
    return f"{value:.4f}"


def _mean_and_max(pair: tuple[float, float]) -> str:
    return f"{format_number(pair[0])} ({format_number(pair[1])})"


def _interval(interval: Interval) -> str:
    value, low, high = (format_number(number) for number in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"


def _interval_html(interval: Interval) -> Markup:
    """The brackets stay on one line."""
    value, bounds = _interval(interval).split(" ", 1)
    return Markup("{} <span>{}</span>").format(value, bounds)


def _ratio(triple: tuple[float, float, float] | None) -> str:
    if triple is None or math.isnan(triple[0]):
        return "-"
    median, low, high = (format_number(value, 3) for value in triple)
    return f"{median} [{low}, {high}]"


def console_summary(section: Section) -> str:
    """One setting for a terminal: the table, the comparisons, where sinks are."""
    parts = [section.sequences.title, console_table(section.models)]
    for rows in section.comparisons:
        title = f"{rows[0].second_label} minus {rows[0].first_label}" if rows else "no common sequences to compare on"
        cells = [(title, "", "95 % interval")]
        cells += [
            (row.name, _interval(row.difference), "clear" if row.difference.clear else "not clear") for row in rows
        ]
        parts.append("\n" + _columns(cells))
    for model in section.models:
        found = [f"{row.at_0:.1%} at eps {row.threshold:g}" for row in threshold_rows(model) if row.kind == "measured"]
        if found:
            parts.append(f"{model.label}: Gu et al.'s sinks at key 0: {', '.join(found)}")
    return "\n".join(parts)


def console_table(models: list[MeasuredModel]) -> str:
    """The table as lines for a terminal: models, their nulls, the paper's figures."""
    header = ("model", "valid loss", "AS", "x_out t0", "t0/early", "MLP t0", "R_GS(0)")
    return _columns([header, *(_cells(row) for row in (*table_rows(models), *PAPER_ROWS))])


def _columns(lines: list[tuple[str, ...]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in padded)


def _cells(row: TableRow) -> tuple[str, ...]:
    kind = {"measured": "", "null": ", untrained", "paper": f" (paper, {PAPER_MODEL})"}[row.kind]
    return (
        row.label + kind,
        _loss(row.valid_loss),
        _mean_and_max(row.attention_sink),
        _mean_and_max(row.hidden_t0),
        format_number(row.hidden_t0_over_early),
        _mean_and_max(row.mlp_t0),
        _ratio(row.gradient_sink_ratio),
    )
