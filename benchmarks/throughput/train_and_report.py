"""`python train_and_report.py FILE METRICS STEP FLAGS`: megasink's training command until METRICS has STEP.

FILE then holds the peak memory in GiB and the seconds from the process' start until METRICS had a step, and the process
ends where it stands: without the checkpoint that ends a run.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

from megasink.train import main

STARTED = time.monotonic()


def end_after(step: int, metrics: Path, report: Path) -> None:
    """Runs beside the training."""
    first_after = None
    while (last := _last_step(metrics)) < step:
        if last and first_after is None:
            first_after = time.monotonic() - STARTED
        time.sleep(0.05)
    import torch

    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    report.write_text(json.dumps({"peak_gib": peak, "first_metrics_after_s": first_after}))
    os._exit(0)


def _last_step(metrics: Path) -> int:
    lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


if __name__ == "__main__":
    report, metrics, step, *flags = sys.argv[1:]
    threading.Thread(target=end_after, args=(int(step), Path(metrics), Path(report)), daemon=True).start()
    main(flags)
