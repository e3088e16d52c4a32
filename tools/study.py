"""Arms x seeds of one recipe, submitted to Slurm or run here, compared on one live page: docs/studies.md.

python tools/study.py STUDY.yaml           # start, or go on where the runs stand

python tools/study.py STUDY.yaml --status
"""

import sys

from megasink.errors import run_cli


def main() -> None:
    # here, where run_cli ends Ctrl-C quietly: the imports take a while
    from megasink.config.cli import parse_cli
    from megasink.study.command import StudyRequest, run_study

    sys.exit(run_study(parse_cli(StudyRequest, sys.argv[1:], description=__doc__)))


if __name__ == "__main__":
    run_cli(main)
