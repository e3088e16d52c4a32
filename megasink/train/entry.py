"""From command-line words to a finished run, on one rank."""

import os
import sys
import traceback
from pathlib import Path

import dotenv

from megasink.config import TrainCommand
from megasink.config.checks import check_run
from megasink.config.cli import parse_cli
from megasink.errors import UserError, run_cli
from megasink.train.exit_codes import BROKEN
from megasink.train.launch import init_environment
from megasink.train.stop import StopRequest


def main(argv: list[str] | None = None, environment: Path | None = None) -> None:
    """Train as the flags in `argv` (default: this process's) say; ends the process on a user's mistake.

    Args:
        environment: file of KEY=VALUE lines for this process's environment; what is set there already stays.
    """
    if environment is not None:
        dotenv.load_dotenv(environment, override=False)
    run_cli(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: list[str]) -> None:
    command = parse_cli(TrainCommand, init_environment(argv), "Pretrain a Llama and watch its attention sinks.")
    config = command.run_config()
    if command.dry_run:
        from megasink.train.dry_run import dry_run

        return dry_run(config, command.world_size)
    if command.world_size is not None:
        raise UserError("--world-size is the launcher's to decide; give it with --dry-run, or start so many ranks")
    check_run(config, int(os.environ["WORLD_SIZE"]))
    stop = StopRequest(config.training.exit_duration_in_mins)
    # only now: torch and DeepSpeed take seconds to import, a wrong flag should not
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns while it guesses
    from megasink.train.distributed import lost_rank
    from megasink.train.setup import run_training

    try:
        exit_code = run_training(config, stop)
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
