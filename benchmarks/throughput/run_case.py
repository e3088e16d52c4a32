"""`python -m throughput.run_case WORK.json RESULTS.jsonl`: one case, in a process of its own."""

import importlib
import json
import sys
from pathlib import Path

import torch

from throughput.work import Work

MODULES = {
    "floor": "floor",
    "bare": "bare",
    "megasink": "megasink_case",
    "megasink-plain": "megasink_case",
    "megasink-fp8": "megasink_case",
    "transformers": "transformers_case",
    "liger": "liger_case",
    "liger-compiled": "liger_case",
    "torchtitan": "torchtitan_case",
    "megatron": "megatron_case",
}


def main() -> None:
    # one compiled AdamW per size of tensor, type of gradient and decay is more than the default of 8
    torch._dynamo.config.recompile_limit = 64
    work = Work.from_json(json.loads(Path(sys.argv[1]).read_text()))
    case = importlib.import_module(f"throughput.{MODULES[work.case]}")
    with open(sys.argv[2], "w") as file:
        for row in case.measure(work):
            file.write(json.dumps(row) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
