"""Train a SentencePiece tokenizer: python tools/train_tokenizer.py --help."""

import sys

from megasink.config.cli import parse_cli
from megasink.errors import run_cli
from megasink.tokenize.train import TrainTokenizerConfig, train_tokenizer


def main() -> None:
    config = parse_cli(TrainTokenizerConfig, sys.argv[1:])
    print(f"wrote {train_tokenizer(config)} ({config.vocab_size} entries)")


if __name__ == "__main__":
    run_cli(main)
