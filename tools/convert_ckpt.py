"""Checkpoints to Hugging Face folders and back.

python tools/convert_ckpt.py --input runs/first --output exported --to hf

python tools/convert_ckpt.py --input llama-folder --output start --to megasink   # then train with --load start
"""

import sys

from megasink.errors import run_cli


def main() -> None:
    # here, where run_cli ends Ctrl-C quietly: the imports take a while
    from megasink.checkpoint.convert import ConvertRequest, convert
    from megasink.config.cli import parse_cli

    print(convert(parse_cli(ConvertRequest, sys.argv[1:], description=__doc__)))


if __name__ == "__main__":
    run_cli(main)
