"""Which checkpoints stay: the last few, and every so many steps one for good."""

from pathlib import Path

from megasink.checkpoint.run_checkpoint import complete_checkpoints


def remove_outdated(checkpoints: Path, keep_last: int, keep_every: int) -> list[Path]:
    """Take outdated checkpoints out of sight and return the hidden folders, which the caller deletes.

    Kept are: step 0 (the untrained weights), the newest `keep_last` (0: all), and multiples of `keep_every` (0: none).
    """
    if keep_last == 0:
        return []
    steps = {int(path.name.removeprefix("step_")): path for path in complete_checkpoints(checkpoints)}
    kept = {0, *sorted(steps)[-keep_last:]}
    if keep_every > 0:
        kept |= {step for step in steps if step % keep_every == 0}
    hidden = []
    for step in sorted(steps.keys() - kept):
        hidden.append(steps[step].rename(checkpoints / f".tmp-removed-{steps[step].name}"))
    return hidden
