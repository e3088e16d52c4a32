"""Tokenization speed beside the references, interleaved: python benchmarks/preprocess_throughput.py --help.

Each case is a process over the same JSONL, timed from start to exit. What it takes on a handful of documents (imports,
loading the tokenizer) is its start, subtracted for "net". The bare libraries are timed from within, around their encode
calls alone. CPU seconds are of the process and its children: they hold on a busy machine, where wall time does not.

Megatron's scripts need, beside the checkout, what they import: torch, triton, transformers, gigatoken, Python >= 3.12.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from megasink.config.cli import parse_cli
from megasink.errors import UserError, run_cli

ROOT = Path(__file__).parents[1]
SAMPLE_SECONDS = 0.05

BARE = """
import json, sys, time
tokenizer, path, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
texts = [json.loads(line)["text"] for line in open(path, encoding="utf-8")]
{load}
began = time.perf_counter()
for start in range(0, len(texts), 200):
    {encode}
print(time.perf_counter() - began)
"""
BARE_SENTENCEPIECE = BARE.format(
    load="import sentencepiece\nmodel = sentencepiece.SentencePieceProcessor(model_file=tokenizer)",
    encode="model.encode_as_numpy(texts[start : start + 200], num_threads=threads)",
)
BARE_TOKENIZERS = BARE.format(
    load="import tokenizers\nmodel = tokenizers.Tokenizer.from_file(tokenizer + '/tokenizer.json')",
    encode="model.encode_batch_fast(texts[start : start + 200], add_special_tokens=False)",
)
# the quickest of its calls, on every core: what no program around it can pass
BARE_GIGATOKEN = """
import json, os, sys, time
import gigatoken
tokenizer, path, processes = sys.argv[1], sys.argv[2], int(sys.argv[3])
texts = [json.loads(line)["text"].encode() for line in open(path, encoding="utf-8")]
model = gigatoken.Tokenizer.from_sentencepiece(tokenizer)
began = time.perf_counter()
for number in range(processes):
    if os.fork() == 0:
        for text in texts[number::processes]:
            model.encode(text)
        os._exit(0)
for _ in range(processes):
    os.wait()
print(time.perf_counter() - began)
"""


@dataclass
class ThroughputConfig:
    """Time tools/preprocess_data.py, the bare libraries and Megatron's scripts on the same text."""

    corpus: str
    """JSONL file."""
    tokenizer: str
    """SentencePiece .model."""
    cases: tuple[str, ...] = ("megasink", "megasink-sentencepiece", "bare-gigatoken", "bare-sentencepiece")
    """Which to run: megasink, megasink-sentencepiece, megasink-tokenizers, bare-gigatoken, bare-sentencepiece,
    bare-tokenizers, megatron, megatron-fast. Each is compared with the first."""
    megabytes: float = 1e6
    """Use at most this much of the corpus."""
    rounds: int = 3
    """Times each case is run; the median counts."""
    workers: int = 2
    """Processes or threads that tokenize, of every case but megatron."""
    memory: bool = False
    """Instead of timing, show the peak memory of all processes of a case (PSS: shared pages count once)."""
    megatron: str | None = None
    """Checkout of Megatron-LM (its wheel lacks these scripts)."""
    huggingface: str | None = None
    """Folder with the same tokenizer as tokenizer.json; Megatron's fast script takes only that."""


@dataclass
class Cost:
    wall: float
    cpu: float
    said: str


def commands(config: ThroughputConfig) -> dict[str, list[str]]:
    """Case -> command; INPUT and OUTPUT stand for paths."""
    ours = [sys.executable, str(ROOT / "tools/preprocess_data.py"), "--input", "INPUT", "--output-prefix", "OUTPUT"]
    ours += ["--append-eod", "--workers", str(config.workers), "--tokenizer"]
    rest = ["INPUT", str(config.workers)]
    of_megatron = ["--input", "INPUT", "--output-prefix", "OUTPUT", "--append-eod", "--tokenizer-model"]
    script, folder = f"{config.megatron}/tools/preprocess_data", str(config.huggingface)
    slow = [config.tokenizer, "--tokenizer-type", "SentencePieceTokenizer", "--workers", "1"]
    fast = [folder, "--tokenizer-type", "HuggingFaceTokenizer", "--use-gigatoken"]
    known = {
        "megasink": [*ours, config.tokenizer],
        "megasink-sentencepiece": [*ours, config.tokenizer, "--encoder", "reference"],
        "megasink-tokenizers": [*ours, folder, "--encoder", "reference"],
        "bare-gigatoken": [sys.executable, "-c", BARE_GIGATOKEN, config.tokenizer, *rest],
        "bare-sentencepiece": [sys.executable, "-c", BARE_SENTENCEPIECE, config.tokenizer, *rest],
        "bare-tokenizers": [sys.executable, "-c", BARE_TOKENIZERS, folder, *rest],
        "megatron": [sys.executable, f"{script}.py", *of_megatron, *slow],
        "megatron-fast": [sys.executable, f"{script}_fast.py", *of_megatron, *fast],
    }
    for case in config.cases:
        if case not in known:
            raise UserError(f"--cases {case}: known are {', '.join(known)}")
        if case.startswith("megatron") and config.megatron is None:
            raise UserError(f"--cases {case} needs --megatron, a checkout of Megatron-LM")
        if folder in known[case] and config.huggingface is None:
            raise UserError(f"--cases {case} needs --huggingface, a folder with the tokenizer as tokenizer.json")
    return {case: known[case] for case in config.cases}


def start(command: list[str], path: Path, folder: Path, config: ThroughputConfig) -> subprocess.Popen:
    out = Path(tempfile.mkdtemp(dir=folder)) / "x"
    command = [{"INPUT": str(path), "OUTPUT": str(out)}.get(word, word) for word in command]
    python_path = [str(ROOT), *([config.megatron] if config.megatron else []), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(python_path), "RAYON_NUM_THREADS": str(config.workers)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    """What it printed."""
    said = process.communicate()[0]
    if process.returncode != 0:
        raise UserError(f"{' '.join(process.args)[:200]} failed: {said[-400:]}")
    return said


def timed(command: list[str], path: Path, folder: Path, config: ThroughputConfig) -> Cost:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    said = finish(start(command, path, folder, config))
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, said)


def peak_memory(process: subprocess.Popen) -> float:
    """Largest sum of PSS over the process and all its descendants until it ends, in MiB."""
    peak, done = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(SAMPLE_SECONDS):
            peak = max(peak, sum(map(pss, descendants(process.pid))))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        finish(process)
    finally:
        done.set()
        thread.join()
    return peak


def descendants(pid: int) -> list[int]:
    found = [pid]
    for process in found:
        try:
            for task in os.listdir(f"/proc/{process}/task"):
                found += map(int, Path(f"/proc/{process}/task/{task}/children").read_text().split())
        except OSError:  # it ended meanwhile
            continue
    return found


def pss(pid: int) -> float:
    """MiB; 0 for a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


def head(corpus: str, size: float, path: Path) -> float:
    """Copy the first lines up to about `size` bytes; the MB copied."""
    with open(corpus, "rb") as source, open(path, "wb") as target:
        while target.tell() < size and (line := source.readline()):
            target.write(line)
        return target.tell() / 1e6


def compare_speed(config: ThroughputConfig, folder: Path, size: float) -> None:
    small = head(config.corpus, 1e5, folder / "small.jsonl")
    rows: dict[str, list[tuple[float, ...]]] = {case: [] for case in config.cases}
    for number in range(config.rounds):
        for case, command in commands(config).items():
            begin = timed(command, folder / "small.jsonl", folder, config)
            whole = timed(command, folder / "whole.jsonl", folder, config)
            if case.startswith("bare"):
                net = size / float(whole.said.split()[-1])
            else:
                net = (size - small) / (whole.wall - begin.wall)
            row = begin.wall, whole.wall, size / whole.wall, net, (size - small) / (whole.cpu - begin.cpu)
            rows[case].append(row)
            print(f"round {number}: {case}: start {row[0]:.1f} s, whole {row[1]:.1f} s, net {net:.1f} MB/s", flush=True)
    middle = {case: [statistics.median(row[at] for row in found) for at in range(5)] for case, found in rows.items()}
    first = middle[config.cases[0]]
    print(f"\n{size:.1f} MB, median of {config.rounds}")
    print(f"| case | start, s | whole, s | MB/s | net MB/s | net MB per CPU second | {config.cases[0]} / this, net |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for case, (begin, whole, rate, net, per_cpu) in middle.items():
        print(
            f"| {case} | {begin:.1f} | {whole:.1f} | {rate:.1f} | {net:.1f} | {per_cpu:.1f} | {first[3] / net:.2f} "
            f"(its start counted, not the other's: {first[2] / net:.2f}) |"
        )


def main() -> None:
    config = parse_cli(ThroughputConfig, sys.argv[1:])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = head(config.corpus, config.megabytes * 1e6, folder / "whole.jsonl")
        if not config.memory:
            compare_speed(config, folder, size)
            return
        for case, command in commands(config).items():
            peak = peak_memory(start(command, folder / "whole.jsonl", folder, config))
            print(f"{size:.1f} MB: {case}: peak {peak:.0f} MiB over all its processes", flush=True)


if __name__ == "__main__":
    run_cli(main)
