"""One rank's mistake is every rank's: so that none waits for a rank that is gone."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from megasink.errors import UserError

Result = TypeVar("Result")


def agree(action: Callable[[], Result], on_rank: int | None = None) -> Result | None:
    """Run `action` on every rank (or on one alone); if it raises UserError anywhere, all ranks raise the first such.

    Returns what it returned on this rank; None on ranks that did not run it.
    """
    result, error = None, None
    if on_rank is None or dist.get_rank() == on_rank:
        try:
            result = action()
        except UserError as caught:
            error = str(caught)
    errors: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    first = next((message for message in errors if message is not None), None)
    if first is not None:
        raise UserError(first)
    return result
