"""Tokenize text into Megatron's .bin/.idx: python tools/preprocess_data.py --help."""

import sys

from megasink.errors import run_cli


def main() -> None:
    # here, where run_cli ends Ctrl-C quietly: the imports take a while
    from megasink.config.cli import parse_cli
    from megasink.tokenize.options import PreprocessConfig
    from megasink.tokenize.preprocess import preprocess

    config = parse_cli(PreprocessConfig, sys.argv[1:])
    print(preprocess(config))


if __name__ == "__main__":
    run_cli(main)
