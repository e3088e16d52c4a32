"""What was measured, where, with which versions; and the file it goes to."""

import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from megasink.data.atomic import write_atomic

BENCHMARKS = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "triton", "deepspeed", "transformers")


def provenance(schema: str, settings: object, device: str, packages: Iterable[str] = ()) -> dict:
    """The head of a benchmark's JSON; versions of PACKAGES and of `packages`, None where absent."""
    versions = {"python": platform.python_version()}
    for package in sorted({*PACKAGES, *packages}):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    git = ["git", "-C", str(BENCHMARKS), "describe", "--always", "--abbrev=40", "--dirty=+changes"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
    return {
        "schema": schema,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "git_commit": commit or None,
        "device": device,
        "versions": versions,
        "settings": vars(settings),
    }


def write_json(path: Path, content: dict) -> None:
    write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())
