"""One preflight: join the job, measure, judge, report."""

import datetime
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from megasink.data.atomic import write_atomic
from megasink.errors import UserError
from megasink.preflight.bandwidth import meet
from megasink.preflight.config import PreflightConfig
from megasink.preflight.judge import judge
from megasink.preflight.measure import measure_rank
from megasink.preflight.nodes import find_nodes
from megasink.preflight.report import as_json, table, verdicts
from megasink.preflight.summary import node_of
from megasink.train.agree import agree
from megasink.train.watchdog import Watchdog


def join(timeout_in_mins: float) -> torch.device:
    """Join the job that the environment names, with NCCL or gloo; returns this rank's device.

    torch's own groups, not DeepSpeed's: that binds the device, and a group of a pair would be split from the group of
    all, which needs all ranks each time.
    """
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # the watchdog, which names ranks, shall be the first to lose patience
    timeout = datetime.timedelta(minutes=2 * timeout_in_mins)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    return device


def leave(device: torch.device) -> None:
    meet(device)  # a launcher ends the others as soon as one rank leaves with a code of its own
    dist.destroy_process_group()


def run(config: PreflightConfig, device: torch.device, folder: Path, log: Path) -> dict[str, list[str]]:
    """The bad nodes and why, known to every rank; rank 0 prints the table and writes report.json into `folder`."""
    watchdog = Watchdog(folder / "hangs", 60.0 * config.timeout_in_mins)
    watchdog.beat(0, "meeting")
    nodes = find_nodes()
    found: list[dict] = [{}] * dist.get_world_size()
    dist.all_gather_object(found, measure_rank(config, nodes, device, folder, log, watchdog))
    summaries = [
        node_of(name, [found[rank] for rank in ranks], config.file_mib)
        for name, ranks in zip(nodes.names, nodes.ranks, strict=True)
    ]
    bad = judge(summaries, config)
    if dist.get_rank() == 0:
        print(table(summaries, found[0]["all"], bad), flush=True)
        for line in verdicts(bad):
            print(line, file=sys.stderr, flush=True)
        if not bad:
            print(f"megasink: none of {len(nodes.names)} stands out; {folder / 'report.json'}", flush=True)
    report = as_json(summaries, found[0]["all"], bad, config)
    agree(lambda: _write(folder / "report.json", report), on_rank=0)
    watchdog.close()
    return bad


def _write(path: Path, report: dict) -> None:
    try:
        write_atomic(path, (json.dumps(report, indent=1) + "\n").encode())
    except OSError as error:
        raise UserError(f"{path}: not written ({error.strerror}); what was found stands above") from None
