"""Sink analysis of checkpoints: one HTML report with figures, tables and the numbers behind them.

python tools/analyze_ckpt.py runs/baseline runs/vscale --label base vscale --data shards/text --out report
"""

import shlex
import sys

from megasink.errors import run_cli


def main() -> None:
    # here, where run_cli ends Ctrl-C quietly: the imports take a while
    from megasink.analysis.analyze import AnalysisRequest, analyze
    from megasink.config.cli import parse_cli

    request = parse_cli(AnalysisRequest, sys.argv[1:], description=__doc__)
    analyze(request, command=shlex.join(["python", *sys.argv]))


if __name__ == "__main__":
    run_cli(main)
