"""From command-line words to a finished run, on one rank."""

import os
import sys
import traceback

from megasink.config import RunConfig
from megasink.config.checks import check_run
from megasink.config.cli import parse_cli
from megasink.errors import UserError, run_cli
from megasink.train.exit_codes import BROKEN
from megasink.train.launch import init_environment


def main(argv: list[str] | None = None) -> None:
    """Train as the flags in `argv` (default: this process's) say; ends the process on a user's mistake."""
    run_cli(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: list[str]) -> None:
    config = parse_cli(RunConfig, init_environment(argv), "Pretrain a Llama and watch its attention sinks.")
    check_run(config, int(os.environ["WORLD_SIZE"]))
    # only now: torch and DeepSpeed take seconds to import, a wrong flag should not
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns while it guesses
    from megasink.train.distributed import lost_rank
    from megasink.train.setup import run_training

    try:
        exit_code = run_training(config)
    except UserError:
        raise
    except Exception as error:
        if (reason := lost_rank(error)) is not None:
            print(f"megasink: rank {os.environ['RANK']} lost another rank ({reason}); ending", file=sys.stderr)
            exit_code = BROKEN
        else:
            traceback.print_exc()
            exit_code = 1
        sys.stderr.flush()
        os._exit(exit_code)  # an orderly end would wait for the other ranks, which wait for this one
    sys.exit(exit_code)
