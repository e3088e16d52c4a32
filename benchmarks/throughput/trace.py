"""Kernel time by category, from a Chrome trace of torch.profiler."""

import bisect
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

OPTIMIZER_RANGE = "megasink::optimizer"

# The first match of a kernel's own name decides. Compiled kernels are named after the operators fused into them, for
# example triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_3, so words here are also operators that give a kernel away.
_BY_KERNEL = [
    ("attention", ("flash", "fmha", "sdpa", "cudnn_generated", "attention", "flex")),
    ("matmul", ("gemm", "nvjet", "cutlass", "cublas", "splitk", "triton_tem")),
    ("cross entropy", ("cross_entropy", "logsumexp", "nll", "softmax", "amax", "masked_fill", "scatter")),
    ("optimizer", ("adam", "multi_tensor", "lpnorm", "clip")),
    ("v-scale", ("vscale", "v_scale", "_exp_")),
    ("swiglu", ("silu", "swiglu", "sigmoid")),
    ("rope", ("rope", "rotary", "_neg_", "_cos_", "_sin_")),
    ("norm", ("rms_norm", "rmsnorm", "rsqrt", "_pow_")),
    ("embedding", ("embedding", "indexselect", "index_select", "index_put")),
    ("copies", ("memcpy", "memset", "copy_kernel", "copy_device", "catarray", "fillfunctor", "triton_poi_fused_cat")),
]
# eager kernels have names like vectorized_elementwise_kernel: the operators around their launch say more
_BY_RANGE = [
    ("cross entropy", ("crossentropy", "cross_entropy")),
    ("norm", ("rmsnorm", "rms_norm")),
    ("swiglu", ("silu", "swiglu")),
    ("rope", ("rotary", "rope")),
    ("v-scale", ("vscale", "v_scale")),
    ("matmul", ("aten::mm", "aten::addmm", "aten::bmm")),
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


def category_of(kernel: str, ranges: tuple[str, ...] = ()) -> str:
    """Of a kernel by its name, else by the profiler ranges around its launch (outermost first).

    One that fuses two, say a norm with a residual add, counts under the first category of the table that it matches.
    """
    if OPTIMIZER_RANGE in ranges or any(name.startswith("Optimizer.step") for name in ranges):
        return "optimizer"
    for names, table in (((kernel,), _BY_KERNEL), (ranges, _BY_RANGE)):
        for category, words in table:
            if any(word in name.lower() for name in names for word in words):
                return category
    return "other"


def read_trace(path: Path) -> tuple[list[Kernel], dict[str, int]]:
    """Kernels in order of start, and how often each call that makes the host wait was made.

    On a machine without a GPU the operators that contain no other stand in for kernels.
    """
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
        device = threads.leaves()
    kernels = []
    for event in device:
        launch = launches.get(event.get("args", {}).get("correlation"), event)
        category = category_of(event["name"], threads.open_at(launch["tid"], launch["ts"]))
        kernels.append(Kernel(event["name"], category, event["ts"], event["dur"]))
    waits = defaultdict(int)
    for event in events:
        if event["name"] in _SYNCHRONISING:
            waits[event["name"]] += 1
    return sorted(kernels, key=lambda kernel: kernel.start), dict(waits)


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

    def leaves(self) -> list[dict]:
        """Operators that contain no other range."""
        found = []
        for tid, own in self.events.items():
            inner = set(self.parents[tid])
            found += [e for at, e in enumerate(own) if at not in inner and e["cat"] == "cpu_op"]
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
