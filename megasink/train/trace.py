"""Where a step's time went, from a Chrome trace of torch.profiler: kernel time by category, waits, a table."""

import bisect
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

OPTIMIZER_RANGE = "megasink::optimizer"
DATA_RANGE = "megasink::data"
"""The host's wait for a batch."""

_COMMUNICATION = ("nccl", "gloo:", "c10d::", "record_param_comms")
# The first match of a kernel's own name decides. Compiled kernels are named after the operators fused into them, for
# example triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_3, so words here are also operators that give a kernel away.
_BY_KERNEL = [
    ("communication", _COMMUNICATION),
    ("attention", ("flash", "fmha", "sdpa", "cudnn_generated", "attention", "flex")),
    ("matmul", ("gemm", "nvjet", "cutlass", "cublas", "splitk", "triton_tem")),
    ("fp8 casts", ("abs_amax", "_rshift_")),  # with what they are fused into
    ("cross entropy", ("cross_entropy", "logsumexp", "nll", "softmax", "amax", "masked_fill", "scatter")),
    ("optimizer", ("adam", "multi_tensor", "lpnorm", "clip")),
    ("rope, v-scale", ("rotary_v_scale",)),  # one kernel, of models with and without V-scale
    ("v-scale", ("vscale", "v_scale", "_exp_")),
    ("swiglu", ("silu", "swiglu", "sigmoid")),
    ("rope", ("rope", "rotary", "_neg_", "_cos_", "_sin_")),
    ("norm", ("rms_norm", "rmsnorm", "rsqrt", "_pow_")),
    ("embedding", ("embedding", "indexselect", "index_select", "index_put")),
    (
        "copies",
        (
            "memcpy",
            "memset",
            "copy_kernel",
            "take_gradient",
            "copy_device",
            "catarray",
            "fillfunctor",
            "triton_poi_fused_cat",
        ),
    ),
]
# eager kernels have names like vectorized_elementwise_kernel: the operators around their launch say more
_BY_RANGE = [
    ("attention", ("scaled_dot_product",)),
    ("cross entropy", ("crossentropy", "cross_entropy")),
    ("norm", ("rmsnorm", "rms_norm")),
    ("swiglu", ("silu", "swiglu")),
    ("rope", ("rotary", "rope")),
    ("v-scale", ("vscale", "v_scale")),
    ("matmul", ("aten::mm", "aten::addmm", "aten::bmm", "aten::_scaled_mm")),
    ("copies", ("aten::copy_", "aten::cat", "aten::fill_", "aten::zero_")),
]
CATEGORIES = [*dict.fromkeys(name for name, _ in _BY_KERNEL + _BY_RANGE), "other"]
_SYNCHRONISING = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::item")


@dataclass
class Kernel:
    """One kernel, copy or fill on the device; times in microseconds."""

    name: str
    category: str
    start: float
    duration: float


@dataclass
class Trace:
    """What a trace holds of some steps."""

    kernels: list[Kernel]
    """In order of start."""
    host_waits: dict[str, int]
    """How often each call that makes the host wait was made."""
    data_wait: float
    """Microseconds in which the host waited for data."""


def category_of(kernel: str, ranges: tuple[str, ...] = ()) -> str:
    """Of a kernel by its name, else by the profiler ranges around its launch (outermost first).

    One that fuses two, say a norm with a residual add, counts under the first category of the table that it matches.
    """
    if any(word in kernel.lower() for word in _COMMUNICATION):
        return "communication"
    if OPTIMIZER_RANGE in ranges or any(name.startswith("Optimizer.step") for name in ranges):
        return "optimizer"
    for names, table in (((kernel,), _BY_KERNEL), (ranges, _BY_RANGE)):
        for category, words in table:
            if any(word in name.lower() for name in names for word in words):
                return category
    return "other"


def read_trace(path: Path) -> Trace:
    """Of a Chrome trace. On a machine without a GPU operators stand in for kernels, each with the time of its own."""
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("ph") == "X"]
    host = [event for event in events if event.get("cat") in ("cpu_op", "user_annotation")]
    device = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    launches = {
        event["args"]["correlation"]: event
        for event in events
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event.get("args", {})
    }
    threads = _Threads(host)
    if not device:
        device = threads.operators()
    kernels = []
    for event in device:
        launch = launches.get(event.get("args", {}).get("correlation"), event)
        category = category_of(event["name"], threads.open_at(launch["tid"], launch["ts"]))
        kernels.append(Kernel(event["name"], category, event["ts"], event["dur"]))
    waits = defaultdict(int)
    for event in events:
        if event["name"] in _SYNCHRONISING:
            waits[event["name"]] += 1
    data_wait = sum(event["dur"] for event in host if event["name"] == DATA_RANGE)
    return Trace(sorted(kernels, key=lambda kernel: kernel.start), dict(waits), data_wait)


def summarise(trace: Trace, steps: int, step_seconds: float, slowest: int = 12) -> dict:
    """Per step: milliseconds by category, the slowest kernels, what the device idles, calls that wait.

    Args:
        step_seconds: of a step without the profiler.
    """
    per_step = 1e-3 / steps
    by_category, by_name = defaultdict(lambda: [0.0, 0]), defaultdict(lambda: [0.0, 0])
    for kernel in trace.kernels:
        for sums in (by_category[kernel.category], by_name[kernel.name, kernel.category]):
            sums[0] += kernel.duration * per_step
            sums[1] += 1
    ordered = sorted(by_name.items(), key=lambda item: -item[1][0])
    return {
        "steps": steps,
        "step_ms": step_seconds * 1e3,
        "busy_ms": busy_time(trace.kernels) * per_step,
        "data_wait_ms": trace.data_wait * per_step,
        "categories": {
            name: {"ms": by_category[name][0], "kernels": by_category[name][1] / steps}
            for name in CATEGORIES
            if name in by_category
        },
        "slowest": [
            {"name": name, "category": category, "ms": total, "calls": count / steps}
            for (name, category), (total, count) in ordered[:slowest]
        ],
        "host_waits": {name: count / steps for name, count in trace.host_waits.items()},
    }


def table(summary: dict) -> str:
    """What `summarise` found, on one screen."""
    step = summary["step_ms"]
    idle = max(0.0, step - summary["busy_ms"])
    lines = [f"{'per step':<24}{'ms':>9}{'share':>8}{'kernels':>9}"]
    for name, sums in sorted(summary["categories"].items(), key=lambda item: -item[1]["ms"]):
        lines.append(f"{name:<24}{sums['ms']:>9.2f}{sums['ms'] / step:>8.1%}{sums['kernels']:>9.0f}")
    lines.append(f"{'idle (launch gaps)':<24}{idle:>9.2f}{idle / step:>8.1%}")
    lines.append(f"{'step':<24}{step:>9.2f}   (without profiler; kernels overlap where the sum exceeds it)")
    lines.append(f"{'host waits for data':<24}{summary['data_wait_ms']:>9.2f}")
    waits = ", ".join(f"{name} {count:.1f}" for name, count in summary["host_waits"].items())
    lines += [f"calls that make the host wait: {waits or 'none'}", ""]
    for entry in summary["slowest"]:
        lines.append(f"{entry['ms']:>8.2f} ms{entry['calls']:>6.0f}x  {entry['category']:<14} {entry['name'][:84]}")
    return "\n".join(lines)


def busy_time(kernels: list[Kernel]) -> float:
    """Microseconds in which at least one kernel ran."""
    total, end = 0.0, float("-inf")
    for kernel in kernels:
        stop = kernel.start + kernel.duration
        total += max(0.0, stop - max(end, kernel.start))
        end = max(end, stop)
    return total


class _Threads:
    """The nested ranges of each host thread."""

    def __init__(self, events: list[dict]):
        self.events: dict[object, list[dict]] = defaultdict(list)
        for event in events:
            self.events[event["tid"]].append(event)
        self.starts, self.parents = {}, {}
        for tid, own in self.events.items():
            own.sort(key=lambda event: (event["ts"], -event["dur"]))
            self.starts[tid] = [event["ts"] for event in own]
            self.parents[tid] = _parents(own)

    def open_at(self, tid: object, time: float) -> tuple[str, ...]:
        """Names of the ranges around a moment, outermost first."""
        own = self.events.get(tid, [])
        at = bisect.bisect_right(self.starts.get(tid, []), time) - 1
        names = []
        while at >= 0:
            if own[at]["ts"] + own[at]["dur"] >= time:
                names.append(own[at]["name"])
            at = self.parents[tid][at]
        return tuple(reversed(names))

    def operators(self) -> list[dict]:
        """Every operator, its duration without those it contains."""
        found = []
        for tid, own in self.events.items():
            inner = [0.0] * len(own)
            for event, parent in zip(own, self.parents[tid], strict=True):
                if parent >= 0:
                    inner[parent] += event["dur"]
            found += [e | {"dur": e["dur"] - inner[at]} for at, e in enumerate(own) if e["cat"] == "cpu_op"]
        return found


def _parents(events: list[dict]) -> list[int]:
    """Index of the smallest range that holds each one, -1 for none; `events` in order of start, longer first."""
    parents, stack = [], []
    for at, event in enumerate(events):
        while stack and events[stack[-1]]["ts"] + events[stack[-1]]["dur"] <= event["ts"]:
            stack.pop()
        parents.append(stack[-1] if stack else -1)
        stack.append(at)
    return parents
