"""What happens when a rank dies or hangs: who notices, what is said, when all are gone; and 8 ranks go on as 4.

    PYTHONPATH=.:benchmarks python -m multi_gpu.faults --out OUT

No launcher ends the others here, so what is seen is what the ranks do themselves. OUT/faults.json, OUT/*.log. Exit
code 1 if one is not as docs/fault-tolerance.md says. Without GPUs the same over gloo.
"""

import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from throughput.megasink_case import write_tokens
from throughput.provenance import provenance, write_json

from megasink.config.cli import parse_cli
from megasink.errors import UserError, run_cli
from megasink.train.exit_codes import BROKEN
from multi_gpu.jobs import Ended, chosen, device_name, make_folder, ranks_here, run_job
from tests.helpers.jobs import RANK_PROGRAM, metrics

FAULTY = "from tests.faults.inject import run; run()"
FAULT_AT = 5
"""Steps done before a rank dies or hangs."""
STEPS, SAVE_INTERVAL = 12, 4
RESUME_BOUND = {"fp32": 1e-5, "bf16": 2e-3}
"""Largest relative difference of a loss after resuming on half the ranks."""


@dataclass
class FaultsConfig:
    """What is done to a job."""

    cases: str = "kill,hang,freeze,resume"
    """kill: SIGKILL to rank 1; hang: it sleeps for ever; freeze: SIGSTOP; resume: save on all, go on with half."""
    ranks: int = 0
    """Ranks of a job, an even number; 0: the GPUs here, 4 on a CPU."""
    precision: str = "bf16"
    """fp32 or bf16."""
    step_timeout_s: float = 30.0
    """The watchdog's patience (--step-timeout-in-mins)."""
    case_minutes: float = 4.0
    """A job that takes longer is ended, and has failed."""
    scratch: str = "/dev/shm"
    """Folder for data and run folders, removed at the end."""
    out: str = "faults-out"
    """Folder of faults.json and the jobs' logs."""


def main() -> None:
    config = parse_cli(FaultsConfig, sys.argv[1:], "Kill, hang and resume jobs on this machine.")
    cases = chosen("--cases", config.cases, ["kill", "hang", "freeze", "resume"])
    if config.precision not in RESUME_BOUND:
        raise UserError(f"--precision {config.precision}: fp32 or bf16")
    ranks, out = ranks_here(config.ranks), make_folder(config.out)
    if ranks < 2 or ranks % 2:
        raise UserError(f"--ranks {ranks}: give an even number of 2 or more")
    scratch = make_folder(f"{config.scratch}/megasink-faults-{time.time_ns()}")
    about, rows = provenance("megasink.faults/1", config, device_name()), []
    try:
        tokens = write_tokens(scratch / "tokens", 256)
        for case in cases:
            job = Jobs(config, tokens, scratch / case, out, case)
            rows.append({"case": case, "ranks": ranks} | (job.resume(ranks) if case == "resume" else job.fault(ranks)))
            write_json(out / "faults.json", about | {"rows": rows})
    finally:
        shutil.rmtree(scratch)
    print(table(rows))
    sys.exit(any(row["status"] != "ok" for row in rows))


class Jobs:
    """Runs of the training command in folders of their own."""

    def __init__(self, config: FaultsConfig, tokens: Path, folder: Path, out: Path, case: str):
        self.config, self.tokens, self.folder, self.out, self.case = config, tokens, folder, out, case

    def start(
        self, name: str, ranks: int, *more: object, steps: int = STEPS, fault: dict | None = None, awaited: set[int]
    ) -> Ended:
        wide = torch.cuda.is_available()
        flags = [
            *("--num-layers", 8 if wide else 2, "--hidden-size", 1024 if wide else 32, "--num-attention-heads", 8),
            *("--ffn-hidden-size", 2816 if wide else 48, "--seq-length", 1024 if wide else 16, "--vocab-size", 256),
            *("--micro-batch-size", 1, "--global-batch-size", 16, "--lr", 1e-3, "--min-lr", 1e-3, "--no-compile"),
            *("--precision", self.config.precision, "--train-iters", steps, "--save-interval", SAVE_INTERVAL),
            *("--log-interval", 1, "--wandb-mode", "disabled", "--sink-stats", "off", "--auto-resume"),
            *("--step-timeout-in-mins", self.config.step_timeout_s / 60, "--data-path", self.tokens),
            *("--save", self.folder / name, *more),
        ]
        program, environ = (RANK_PROGRAM, {}) if fault is None else (FAULTY, {"FAULT": json.dumps(fault)})
        log = self.out / f"{self.case}-{name}.log"
        return run_job(program, flags, ranks, log, 60.0 * self.config.case_minutes, environ, awaited)

    def fault(self, ranks: int) -> dict:
        """Something happens to rank 1 before step FAULT_AT + 1."""
        kind = {"kill": "kill", "hang": "sleep", "freeze": "stop"}[self.case]
        fault = {"kind": kind, "rank": 1, "at": FAULT_AT}
        others = [rank for rank in range(ranks) if rank != 1]
        ended = self.start("run", ranks, "--tensor-model-parallel-size", 2, fault=fault, awaited=set(others))
        record = self.folder / "run" / "metrics.jsonl"
        if not record.exists() or len(metrics(self.folder / "run")) < FAULT_AT - 1:
            return {"status": f"the job never came to step {FAULT_AT}: {ended.last_words}", "codes": ended.codes}
        since = ended.at[1] if kind == "kill" else record.stat().st_mtime
        waited = [ended.at[rank] - since for rank in others]
        said = [line for line in ended.log.read_text(errors="replace").splitlines() if line.startswith("megasink: ")]
        wrong = [f"rank {rank} ended with {ended.codes[rank]}" for rank in others if ended.codes[rank] != BROKEN]
        if kind != "kill" and not any(line.startswith("megasink:   rank 1: ") for line in said):
            wrong.append("no line names rank 1")
        return {
            "status": "; ".join(wrong) or "ok",
            "codes": ended.codes,
            "first_gone_s": min(waited),
            "all_gone_s": max(waited),
            "said": said,
        }

    def resume(self, ranks: int) -> dict:
        """Save on all ranks, go on with half of them; against a run on half of them from the start."""
        half = ranks // 2
        for name, count, steps in (("whole", half, STEPS), ("moved", ranks, 2 * SAVE_INTERVAL), ("moved", half, STEPS)):
            ended = self.start(name, count, steps=steps, awaited=set(range(count)))
            if ended.codes != [0] * count:
                return {"status": f"{name} on {count} ranks ended with {ended.codes}: {ended.last_words}"}
        whole, moved = ([record["loss"] for record in metrics(self.folder / name)] for name in ("whole", "moved"))
        difference = max(abs(seen / expected - 1.0) for seen, expected in zip(moved, whole, strict=True))
        bound = RESUME_BOUND[self.config.precision]
        return {
            "status": "ok" if difference <= bound else f"losses differ by {difference:.1e}, bound {bound:.0e}",
            "resumed_on": half,
            "largest_loss_difference": difference,
        }


def table(rows: list[dict]) -> str:
    """One line a case, and what the ranks said."""
    lines = []
    for row in rows:
        seen = ""
        if "all_gone_s" in row:
            seen = f"first gone after {row['first_gone_s']:.1f} s, all after {row['all_gone_s']:.1f} s; "
        if "largest_loss_difference" in row:
            seen = f"resumed on {row['resumed_on']}, losses within {row['largest_loss_difference']:.1e}; "
        lines.append(f"{row['case']:<8}{row['ranks']:>3} ranks  {seen}{row['status']}")
        lines += [f"    {line}" for line in row.get("said", []) if "no progress" in line or "  rank" in line]
    return "\n".join(lines)


if __name__ == "__main__":
    run_cli(main)
