"""From command-line words to a verdict on the nodes, on one rank."""

import os
import sys
import traceback
from pathlib import Path

import dotenv

from megasink.config.cli import parse_cli
from megasink.errors import UserError, run_cli
from megasink.preflight.config import PreflightConfig, check_config
from megasink.preflight.transport import ask_nccl
from megasink.train.exit_codes import BROKEN, MISTAKE
from megasink.train.launch import init_environment

NODE_IS_BAD = 1


def main(argv: list[str] | None = None, environment: Path | None = None) -> None:
    """Measure and judge the nodes of this job; ends the process: 0 all are well, 1 some are bad, 76 one was lost.

    Args:
        environment: file of KEY=VALUE lines for this process's environment; what is set there already stays.
    """
    if environment is not None:
        dotenv.load_dotenv(environment, override=False)
    run_cli(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: list[str]) -> None:
    words = init_environment(argv)
    config = parse_cli(PreflightConfig, words, "Measure and compare the nodes of this job before a long run.")
    check_config(config)
    rank = int(os.environ["RANK"])
    folder = Path(config.save) / "preflight"
    log = folder / "nccl" / f"rank_{rank:05d}.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
    except OSError as error:
        _end(f"cannot write in {folder} ({error.strerror}); mount it there, or name another --save", MISTAKE)
    ask_nccl(log)
    from megasink.preflight.run import join, leave, run

    try:
        device = join(config.timeout_in_mins)
    except Exception as error:
        minutes = 2 * config.timeout_in_mins
        _end(f"did not meet the others at {_meeting()} within {minutes:g} min ({_first(error)})", BROKEN)
    try:
        bad = run(config, device, folder, log)
        leave(device)
    except UserError:
        raise
    except Exception as error:
        traceback.print_exc()
        _end(f"a measurement failed ({_first(error)})", BROKEN)
    sys.exit(NODE_IS_BAD if bad else 0)


def _end(reason: str, code: int) -> None:
    """Say why this rank, on its node, cannot go on; the others are not waited for."""
    from megasink.preflight.nodes import own_name

    print(f"megasink: rank {os.environ['RANK']} on {own_name()}: {reason}", file=sys.stderr, flush=True)
    os._exit(code)


def _meeting() -> str:
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
