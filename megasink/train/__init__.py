"""Training: `main` is what launchers start on every rank."""

from megasink.train.entry import main

__all__ = ["main"]
