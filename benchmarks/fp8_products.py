"""Does fp8 pay at these sizes? Each weight of a block: its three products in bf16, in fp8 with the casts, in fp8 alone.

    python benchmarks/fp8_products.py --shape 1b,7b-cut --micro-batch-size 8 --out OUT

One GPU, no training. Products of y = x W^T, forward and both of backward: `bf16` through torch's matmul; `fp8` through
megasink.parallel.fp8 as training runs it, compiled, from bf16 to bf16; `products` only its three scaled products, of
operands cast before. In training some of the casts' passes fuse with the operations before them, so `fp8` is what it
costs at most. Prints a table; OUT/fp8_products.json is rewritten after each weight.
"""

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from throughput.provenance import provenance, write_json
from throughput.shapes import shape_named
from throughput.work import Clock, device

from megasink.config.cli import parse_cli
from megasink.errors import UserError, run_cli
from megasink.parallel.fp8 import GRADIENT_FORMATS, INPUT_FORMAT, check_fp8_device, fp8_linear, quantise, scaled_product

WEIGHTS = ("q-k-v", "o", "gate-up", "down")
KINDS = ("bf16", "fp8", "products")


@dataclass
class ProductsConfig:
    """What is measured."""

    shape: str = "1b,7b-cut"
    """Shapes, separated by commas: tiny, 0.1b, 0.3b, 1b, 7b-cut."""
    micro_batch_size: int = 8
    """Sequences per forward pass."""
    repeats: int = 30
    """Timed passes, whose median counts, after 5 of warm-up."""
    compile: bool = True
    """Compile the casts (on a GPU)."""
    out: str = "fp8-products-out"
    """Folder of fp8_products.json."""


def main() -> None:
    own = parse_cli(ProductsConfig, sys.argv[1:], "Time a block's products in bf16 and fp8.")
    for flag, value in {"--micro-batch-size": own.micro_batch_size, "--repeats": own.repeats}.items():
        if value < 1:
            raise UserError(f"{flag} {value}: must be at least 1")
    shapes = {name: shape_named(name) for name in own.shape.split(",")}
    check_fp8_device(device())
    out = Path(own.out)
    out.mkdir(parents=True, exist_ok=True)
    name_of_device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    about, rows = provenance("megasink.fp8_products/1", own, name_of_device), []
    print(f"{name_of_device}, torch {torch.__version__}; milliseconds, micro-batch {own.micro_batch_size}\n{HEADING}")
    for name, shape in shapes.items():
        tokens, first = own.micro_batch_size * shape.seq_length, len(rows)
        for weight, (outputs, inputs) in zip(WEIGHTS, shape.block_matrices, strict=True):
            seconds = measure(tokens, outputs, inputs, own)
            rows.append({"shape": name, "weight": weight, "tokens": tokens, "out": outputs, "in": inputs} | seconds)
            print(line(rows[-1]), flush=True)
            write_json(out / "fp8_products.json", about | {"rows": rows})
        sums = {f"{kind}_s": sum(row[f"{kind}_s"] for row in rows[first:]) for kind in KINDS}
        print(line({"shape": name, "weight": "block", "out": "", "in": ""} | sums), flush=True)


def measure(tokens: int, outputs: int, inputs: int, own: ProductsConfig) -> dict[str, float]:
    """Median seconds of each kind."""
    generator = torch.Generator(device()).manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, device=device(), dtype=torch.bfloat16)

    states, weight, upstream = normal(tokens, inputs), normal(outputs, inputs), normal(tokens, outputs)
    leaves = states.requires_grad_(), weight.requires_grad_()
    form = GRADIENT_FORMATS["hybrid"]
    linear = fp8_linear
    if own.compile and torch.cuda.is_available():
        linear = torch.compile(fp8_linear, dynamic=False, fullgraph=True)

    def in_fp8() -> None:
        torch.autograd.grad(linear(leaves[0], [leaves[1]], form), leaves, upstream)

    with torch.no_grad():
        (x, x_scale), (w, w_scale), (g, g_scale) = (
            quantise(values, to) for values, to in ((states, INPUT_FORMAT), (weight, INPUT_FORMAT), (upstream, form))
        )
        x_t, w_t, g_t = (values.t().contiguous() for values in (x, w, g))

    def products() -> None:
        scaled_product(x, x_scale, w, w_scale, torch.bfloat16, fast=True)
        scaled_product(g, g_scale, w_t, w_scale, torch.bfloat16, fast=False)
        scaled_product(g_t, g_scale, x_t, x_scale, torch.bfloat16, fast=False)

    @torch.no_grad()
    def in_bf16() -> None:
        states @ weight.t()
        upstream @ weight
        upstream.t() @ states

    work = {"bf16": in_bf16, "fp8": in_fp8, "products": products}
    return {f"{kind}_s": median_seconds(work[kind], own.repeats) for kind in KINDS}


def median_seconds(work: Callable[[], None], repeats: int) -> float:
    for _ in range(5):
        work()
    clock = Clock()
    clock.mark()
    for _ in range(repeats):
        work()
        clock.mark()
    return statistics.median(clock.seconds())


HEADING = (
    f"{'shape':<8} {'weight':<8} {'out':>6} {'in':>6} {'bf16':>9} {'fp8':>9} {'products':>9} {'casts':>9} "
    f"{'bf16/fp8':>9} {'bf16/products':>14}"
)


def line(row: dict) -> str:
    bf16, fp8, products = (row[f"{kind}_s"] * 1e3 for kind in KINDS)
    return (
        f"{row['shape']:<8} {row['weight']:<8} {row['out']:>6} {row['in']:>6} "
        f"{bf16:>9.3f} {fp8:>9.3f} {products:>9.3f} {fp8 - products:>9.3f} {bf16 / fp8:>9.2f} {bf16 / products:>14.2f}"
    )


if __name__ == "__main__":
    run_cli(main)
