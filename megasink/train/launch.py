"""Who am I in the job: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, whoever started this process.

`deepspeed` and `torchrun` set all five. Under `srun` (DeepSpeed's slurm runner makes one too) they follow from Slurm's
variables. A process started by hand is a job of one rank.
"""

import os
import subprocess
from collections.abc import MutableMapping

from megasink.errors import UserError

_FIRST_PORT, _PORTS = 20000, 10000


def init_environment(argv: list[str], environ: MutableMapping[str, str] = os.environ) -> list[str]:
    """Complete the rank variables in `environ` and return `argv` without a launcher's `--local_rank N`.

    Raises:
        UserError: an incomplete or contradictory launcher environment, or a Slurm node list that cannot be resolved.
    """
    local_rank, argv = _take_local_rank(argv)
    if "RANK" in environ:
        environ.setdefault("LOCAL_RANK", local_rank or "0")
        if environ.get("WORLD_SIZE") == "1":
            environ.setdefault("MASTER_ADDR", "127.0.0.1")
            environ.setdefault("MASTER_PORT", "0")  # the store binds one that is free
    elif "SLURM_STEP_NUM_TASKS" in environ:  # only srun's tasks have it, not a batch script's shell
        _take_place_in_step(environ)
    elif (environ.get("WORLD_SIZE") or "1") != "1":
        raise UserError(
            f"WORLD_SIZE is {environ['WORLD_SIZE']} but RANK is not set; start with deepspeed, torchrun or srun, or "
            "unset WORLD_SIZE"
        )
    else:
        environ.setdefault("MASTER_PORT", "0")
        environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1")
    _check(environ)
    return argv


def _take_place_in_step(environ: MutableMapping[str, str]) -> None:
    try:
        environ.setdefault("MASTER_PORT", str(_port_of_step(environ)))
        if "MASTER_ADDR" not in environ:
            environ["MASTER_ADDR"] = first_host(environ["SLURM_STEP_NODELIST"])
        environ["RANK"] = environ["SLURM_PROCID"]
        environ["WORLD_SIZE"] = environ["SLURM_STEP_NUM_TASKS"]
        environ["LOCAL_RANK"] = _local_rank_of_task(environ)
    except KeyError as error:
        raise UserError(
            f"SLURM_STEP_NUM_TASKS is set but {error.args[0]} is not; pass all of Slurm's variables on, or unset it"
        ) from None


def _check(environ: MutableMapping[str, str]) -> None:
    """The five variables are there and are what they should be: torch would say so with a traceback, or wait."""
    advice = "start with deepspeed, torchrun or srun, or unset RANK"
    for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        if not environ.get(name):
            raise UserError(f"RANK is set but {name} is not; {advice}")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        if not (environ[name].isascii() and environ[name].isdigit()):
            raise UserError(f"{name} is {environ[name]!r}, which is no number; {advice}")
    if int(environ["RANK"]) >= int(environ["WORLD_SIZE"]):
        raise UserError(f"RANK {environ['RANK']} with WORLD_SIZE {environ['WORLD_SIZE']}: ranks count from 0; {advice}")
    if int(environ["MASTER_PORT"]) > 65535:
        raise UserError(f"MASTER_PORT {environ['MASTER_PORT']}: the highest port is 65535; name a free one below it")


def _take_local_rank(argv: list[str]) -> tuple[str | None, list[str]]:
    local_rank, rest = None, []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name in ("--local_rank", "--local-rank"):
            local_rank = value if equals else next(words, None)
        else:
            rest.append(word)
    return local_rank, rest


def _local_rank_of_task(environ: MutableMapping[str, str]) -> str:
    """With --gpus-per-task=1 every task sees one device, number 0, whatever its place on the node."""
    visible = environ.get("CUDA_VISIBLE_DEVICES", "")
    return "0" if visible and "," not in visible else environ["SLURM_LOCALID"]


def first_host(nodelist: str) -> str:
    """`node[3-4]` -> `node3`: rank 0 lives on the first node of the step."""
    try:
        reply = subprocess.run(["scontrol", "show", "hostnames", nodelist], capture_output=True, text=True, check=True)
        return reply.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise UserError(
            f"`scontrol show hostnames {nodelist}` failed ({error}); set MASTER_ADDR to the first node's name"
        ) from None


def _port_of_step(environ: MutableMapping[str, str]) -> int:
    """The same on every rank without talking, different for jobs and steps that share a node."""
    return _FIRST_PORT + (int(environ["SLURM_JOB_ID"]) * 16 + int(environ["SLURM_STEP_ID"])) % _PORTS
