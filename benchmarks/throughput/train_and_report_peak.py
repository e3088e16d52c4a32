"""`python train_and_report_peak.py FILE FLAGS`: megasink's training command, then its peak memory in GiB."""

import json
import sys
from pathlib import Path

from megasink.train import main

main(sys.argv[2:])

import torch  # noqa: E402  (main sets the environment first)

peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
Path(sys.argv[1]).write_text(json.dumps(peak))
