"""Run preprocess_data in a process that kills itself: python killed.py COUNT ARGUMENTS...

Counts the events at which files change (open, rename, remove, mkdir) and ends with SIGKILL just before number COUNT;
COUNT 0 only counts and prints.
"""

import os
import signal
import sys

CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.truncate"}


def main() -> None:
    from megasink.config.cli import parse_cli
    from megasink.errors import run_cli
    from megasink.tokenize.options import PreprocessConfig
    from megasink.tokenize.preprocess import preprocess

    last, seen = int(sys.argv[1]), 0
    prefix = sys.argv[sys.argv.index("--output-prefix") + 1]

    def count(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event in CHANGES and str(arguments[0]).startswith(prefix):
            seen += 1
            if seen == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    run_cli(lambda: preprocess(parse_cli(PreprocessConfig, sys.argv[2:])))
    print(seen)


if __name__ == "__main__":
    main()
