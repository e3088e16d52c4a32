"""Rows of measurements with their ratios, as a table and as JSON."""

from megasink.train.flops import PEAK_FLOPS
from throughput.shapes import Shape

OURS = ("megasink", "megasink-plain", "megasink-fp8")
PEERS = ("transformers", "liger", "liger-compiled", "torchtitan", "megatron")
POINT = ("shape", "seq_length", "micro_batch_size", "accumulate")


def measured_row(shape: Shape, point: dict, measurement: dict, device_name: str) -> dict:
    """Throughput of one measurement; `point` holds case, shape (its name), seq_length and micro_batch_size."""
    tokens = point["micro_batch_size"] * point["seq_length"] * measurement["accumulate"]
    rate = tokens / measurement["step_s"]
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in device_name), None)
    mfu = None if peak is None else rate * shape.flops_per_token / peak
    return point | {"status": "ok", "tokens_per_second": rate, "mfu": mfu} | measurement


def with_ratios(rows: list[dict]) -> list[dict]:
    """Each row's tokens/s over those of the floor, the bare loop and the best peer at the same point (None: absent)."""
    rates: dict[tuple, dict[str, float]] = {}
    for row in rows:
        if row["status"] == "ok":
            rates.setdefault(_point(row), {})[row["case"]] = row["tokens_per_second"]
    found = []
    for row in rows:
        others = rates.get(_point(row), {})
        best_peer = max((others[name] for name in PEERS if name in others), default=None)
        bases = {"floor": others.get("floor"), "bare": others.get("bare"), "best_peer": best_peer}
        rate = row.get("tokens_per_second")
        ratios = {name: rate / base if rate and base else None for name, base in bases.items()}
        found.append(row | {f"over_{name}": ratio for name, ratio in ratios.items()})
    return found


def table(rows: list[dict]) -> str:
    """One line a row, one group a point."""
    heading = (
        f"{'case':<16}{'ms/step':>10}{'tokens/s':>11}{'MFU':>7}{'GiB':>7}{'/floor':>8}{'/bare':>8}{'/peer':>8}  note"
    )
    lines, group = [], None
    for row in sorted(with_ratios(rows), key=lambda row: tuple(str(part) for part in _point(row))):
        if _point(row) != group:
            group = _point(row)
            lines += ["", "shape {}, T {}, micro-batch {}, accumulate {}".format(*group), heading]
        lines.append(_line(row))
    return "\n".join(lines[1:])


def floor_parts(rows: list[dict]) -> str:
    """What the floor of each point consists of, in ms a step."""
    lines = []
    for row in rows:
        if row["case"] == "floor" and row["status"] == "ok":
            parts = ", ".join(f"{name} {seconds * 1e3:.2f}" for name, seconds in row["parts_s"].items())
            lines.append("floor of {}, T {}, micro-batch {}, accumulate {}: {}".format(*_point(row), parts))
    return "\n".join(lines)


def _point(row: dict) -> tuple:
    return tuple(row[name] for name in POINT)


def _line(row: dict) -> str:
    if row["status"] != "ok":
        return f"{row['case']:<16}{row['status']}"
    ratios = "".join(_number(row[f"over_{name}"], 8, ".3f") for name in ("floor", "bare", "best_peer"))
    share = "-" if row["mfu"] is None else f"{row['mfu']:.1%}"
    note = f"first step {row['first_step_s']:.0f} s, loss {row['loss']:.3f}" if "loss" in row else ""
    if row.get("first_metrics_after_s"):
        note += f", first metrics {row['first_metrics_after_s']:.0f} s after the start"
    return (
        f"{row['case']:<16}{row['step_s'] * 1e3:>10.1f}{row['tokens_per_second']:>11,.0f}{share:>7}"
        f"{_number(row['peak_gib'], 7, '.1f')}{ratios}  {note}"
    )


def _number(value: float | None, width: int, form: str) -> str:
    return f"{'-' if value is None else format(value, form):>{width}}"
