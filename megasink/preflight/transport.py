"""How NCCL talks, from what it says under NCCL_DEBUG=INFO."""

import os
import re
from collections.abc import MutableMapping
from pathlib import Path

# NCCL INFO Channel 00/0 : 0[0] -> 8[0] [send] via NET/IB/2(3)/GDRDMA
_CHANNEL = re.compile(r"NCCL INFO (?:Channel|Ring|Tree) .* via (\S+)")
# NCCL INFO NET/IB : Using [0]mlx5_0:1/IB [1]mlx5_1:1/RoCE [RO]; OOB eth0:10.0.0.1<0>
_DEVICES = re.compile(r"NCCL INFO NET/\w+ ?: Using (.*)")
_NVLS = re.compile(r"\b[1-9]\d* nvls channels")


def ask_nccl(log: Path, environ: MutableMapping[str, str] = os.environ) -> None:
    """Have NCCL, not started yet in this process, write what it chooses into `log`."""
    environ |= {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "INIT,NET,P2P,SHM,NVLS", "NCCL_DEBUG_FILE": str(log)}


def transports(text: str) -> dict[str, str]:
    """`within` a node and `between` nodes: the kinds of channel, such as `NVLS + P2P/CUMEM` and `NET/IB/GDRDMA`; and
    how many network devices NCCL uses. What the text does not tell is absent.
    """
    kinds = {_without_numbers(channel) for channel in _CHANNEL.findall(text)}
    between = sorted(kind for kind in kinds if kind.startswith(("NET", "COLLNET", "CollNet")))
    within = sorted(kinds - set(between)) + ([] if _NVLS.search(text) is None else ["NVLS"])
    found = {"within": " + ".join(sorted(within)), "between": " + ".join(between)}
    if (devices := _DEVICES.search(text)) is not None:
        found["network devices"] = str(len(re.findall(r"\[\d+\]\S", devices[1])))
    return {name: value for name, value in found.items() if value}


def _without_numbers(channel: str) -> str:
    """`NET/IB/2(3)/GDRDMA` -> `NET/IB/GDRDMA`."""
    return "/".join(part for part in channel.split("/") if not part[:1].isdigit())
