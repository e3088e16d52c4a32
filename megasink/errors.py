"""How megasink speaks to a user who did something that cannot work: one line, then a non-zero exit."""

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake the user can mend: the message is one line that says what is wrong, where, and what to do."""


class OneRankError(UserError):
    """A fault that one rank meets while the others work: too late to agree on it, so that rank speaks itself."""


def is_speaking_rank() -> bool:
    """True on the one process that prints for the whole job (global rank 0, or a process without a number for one)."""
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    return not rank.isdecimal() or int(rank) == 0


def run_cli(main: Callable[[], None]) -> None:
    """Run an entry point; a UserError becomes one line on stderr and exit code 2.

    Only rank 0 speaks, for all, save where the fault is one rank's own (OneRankError).
    """
    try:
        main()
    except UserError as error:
        if is_speaking_rank() or isinstance(error, OneRankError):
            print(f"megasink: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(2)
    except BrokenPipeError:  # whoever read our output has seen enough: `tools/plan.py ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)
