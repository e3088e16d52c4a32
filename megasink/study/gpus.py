"""The GPUs of this machine, dealt out to runs that go on at the same time."""

import itertools
import os
import subprocess
import sys

from megasink.errors import UserError


def visible_gpus() -> list[str]:
    """Numbers or UUIDs as CUDA_VISIBLE_DEVICES has them, else the numbers of all; none where runs use the CPU.

    Raises:
        UserError: an environment in which launch scripts would not keep to the GPUs they are given.
    """
    if os.environ.get("SLURM_JOB_ID"):
        raise UserError(
            "--at-once inside a Slurm job: there launch scripts use srun, whose steps wait for each other and see all "
            "GPUs; start the study with `env -u SLURM_JOB_ID`"
        )
    if os.environ.get("DS_ACCELERATOR", "cuda") != "cuda":
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        gpus = [str(number) for number in range(_count())]
    else:  # CUDA does not look beyond an entry that is none
        gpus = list(itertools.takewhile(lambda word: word not in ("", "-1"), map(str.strip, named.split(","))))
    if gpus and os.environ.get("NUM_GPUS"):  # with --num_gpus DeepSpeed's launcher takes the first ones, for every run
        raise UserError("--at-once deals out the GPUs; unset NUM_GPUS (CUDA_VISIBLE_DEVICES says which ones to use)")
    return gpus


def _count() -> int:
    """Asked in another process: torch takes seconds to import, and here nothing else needs it."""
    words = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[-1])


def deal_gpus(gpus: list[str], at_once: int) -> list[list[str]]:
    """A set of GPUs for each of the runs at once: equal numbers of their own, or one each that runs share in turn."""
    if not gpus:
        return [[] for _ in range(at_once)]
    each = max(1, len(gpus) // at_once)
    firsts = (place * each % len(gpus) for place in range(at_once))
    return [gpus[first : first + each] for first in firsts]
