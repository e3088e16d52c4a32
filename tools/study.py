"""Arms x seeds of one recipe, submitted to Slurm or run here, compared on one live page: docs/studies.md.

python tools/study.py STUDY.yaml           # start, or go on where the runs stand

python tools/study.py STUDY.yaml --status
"""

import sys

from megasink.config.cli import parse_cli
from megasink.errors import run_cli
from megasink.study.command import StudyRequest, run_study


def main() -> None:
    sys.exit(run_study(parse_cli(StudyRequest, sys.argv[1:], description=__doc__)))


if __name__ == "__main__":
    run_cli(main)
