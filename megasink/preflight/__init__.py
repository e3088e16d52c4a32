"""Looks at the nodes of a job before the job: networks, file system, GPUs, clocks, versions (docs/preflight.md)."""

from megasink.preflight.entry import main

__all__ = ["main"]
