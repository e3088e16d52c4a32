"""Study files for the tests, and run folders as training leaves them."""

import json
from pathlib import Path

import yaml

from tests.helpers.jobs import ROOT, TINY

PRESET = ROOT / "examples" / "pretrain_0.1b.sh"


def as_flags(words: list[str]) -> dict[str, str]:
    """`--lr 1e-2` -> `{lr: 1e-2}`"""
    return {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}


TINY_FLAGS = as_flags(TINY) | {
    "lr-warmup-iters": "0", "eval-interval": "0", "sink-stats-interval": "2", "sink-stats-full-interval": "0",
}  # fmt: skip


def write_study(path: Path, **keys) -> Path:
    """A study of two arms that is right, with `keys` in place of its own."""
    study = {
        "script": str(PRESET),
        "out": str(path.parent / "out"),
        "flags": TINY_FLAGS | {"train-iters": "4"},
        "arms": {"baseline": {}, "V-scale": {"v-scale": "on"}},
    }
    path.write_text(yaml.safe_dump(study | keys, sort_keys=False))
    return path


def write_run(folder: Path, losses: list[float], **scalars: list[float]) -> None:
    """metrics.jsonl with a line a step, scalars.jsonl with a line every second step from 0 on."""
    (folder / "sink_stats").mkdir(parents=True)
    metrics = [
        {"step": step, "loss": loss, "step_time_s": 0.5, "tokens_per_second": 1e3}
        for step, loss in enumerate(losses, 1)
    ]
    reports = [
        {"step": 2 * number} | dict(zip(scalars, values, strict=True))
        for number, values in enumerate(zip(*scalars.values(), strict=True))
    ]
    for path, records in ((folder / "metrics.jsonl", metrics), (folder / "sink_stats" / "scalars.jsonl", reports)):
        path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_last_checkpoint(folder: Path, step: int) -> None:
    checkpoint = folder / "checkpoints" / f"step_{step:08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
