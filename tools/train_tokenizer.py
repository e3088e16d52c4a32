"""Train a SentencePiece tokenizer: python tools/train_tokenizer.py --help."""

import sys

from megasink.errors import run_cli


def main() -> None:
    # here, where run_cli ends Ctrl-C quietly: the imports take a while
    from megasink.config.cli import parse_cli
    from megasink.tokenize.train import TrainTokenizerConfig, train_tokenizer

    config = parse_cli(TrainTokenizerConfig, sys.argv[1:])
    print(f"wrote {train_tokenizer(config)} ({config.vocab_size} entries)")


if __name__ == "__main__":
    run_cli(main)
