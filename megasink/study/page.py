"""The study's page: one HTML file without a network, drawn anew while runs go on."""

import time

from jinja2 import Environment, PackageLoader, StrictUndefined

from megasink.analysis import style
from megasink.data.atomic import write_atomic
from megasink.errors import UserError
from megasink.study.comparison import FIGURES, TRAINING_LOSS, StudySeries
from megasink.study.panels import draw_panels
from megasink.study.run_folder_reader import QUEUED, RUNNING, RunProgress
from megasink.study.study_file import Study
from megasink.study.table import clock, headline

REFRESH_S = 20
"""How often the page is drawn and loads itself again while runs go on."""


def write_page(study: Study, progress: list[RunProgress], live: bool) -> None:
    """Draw everything recorded so far. `live`: more will come, so the page loads itself again.

    Raises:
        UserError: the output folder cannot be written to.
    """
    series = StudySeries(study)
    environment = Environment(loader=PackageLoader("megasink.study"), autoescape=True, undefined=StrictUndefined)
    environment.filters["clock"] = clock
    html = environment.get_template("study.html.j2").render(
        study=study,
        headline=headline(progress),
        refresh_s=REFRESH_S if live or any(run.state in (QUEUED, RUNNING) for run in progress) else None,
        drawn=time.strftime("%Y-%m-%d %H:%M:%S"),
        arms=[(arm, style.colour(index)) for index, arm in enumerate(study.arms)],
        several_seeds=len({run.seed for run in study.runs}) > 1,
        progress=progress,
        figures=(TRAINING_LOSS, *FIGURES),
        rows=series.rows(),
        panels=draw_panels(series),
    )
    try:
        study.out.mkdir(parents=True, exist_ok=True)
        write_atomic(study.page, html.encode("utf-8"))
    except OSError as error:
        raise UserError(f"{study.page}: cannot be written ({error.strerror}); choose another `out:`") from None
