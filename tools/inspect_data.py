"""What is in a .bin/.idx pair, and is it whole: python tools/inspect_data.py PREFIX."""

import sys

from megasink.errors import run_cli


def main() -> None:
    # here, where run_cli ends Ctrl-C quietly: the imports take a while
    from megasink.config.cli import parse_cli
    from megasink.tokenize.inspection import InspectConfig, inspect

    for line in inspect(parse_cli(InspectConfig, sys.argv[1:])):
        print(line)
    print("whole: sizes, pointers and ids are right")


if __name__ == "__main__":
    run_cli(main)
