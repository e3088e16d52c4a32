"""How megasink speaks to a user who did something that cannot work: one line, then a non-zero exit."""

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake the user can mend: the message is one line that says what is wrong, where, and what to do."""


def is_speaking_rank() -> bool:
    """True on the one process that prints for the whole job (global rank 0, or a process without ranks)."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0


def run_cli(main: Callable[[], None]) -> None:
    """Run an entry point; a UserError becomes one line on stderr (on rank 0 only) and exit code 2 on every rank."""
    try:
        main()
    except UserError as error:
        if is_speaking_rank():
            print(f"megasink: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
