"""What the planner knows of GPUs and of the links between them: the makers' data sheets, and one node's network."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU in a node of eight of its maker's design. Bandwidths are per GPU and direction, bytes/s."""

    name: str
    peak_flops: float
    """Dense bf16 tensor-core peak, FLOP/s."""
    memory: float
    """Bytes a process can see (nvidia-smi's total)."""
    memory_bandwidth: float
    nvlink: float
    network: float
    """Each GPU has a network adapter of its own."""
    fp8: bool = True
    """Whether it multiplies fp8."""


RESERVED = 4 * 2**30
"""Bytes of a GPU that a plan leaves alone: CUDA's context, NCCL's and cuBLAS's buffers, fragments. Assumed."""

GPUS = {
    # H100 SXM5 data sheet: 989.4 TFLOP/s, 80 GB HBM3 at 3.35 TB/s, NVLink 900 GB/s both ways; DGX H100 data sheet:
    # eight ConnectX-7 of 400 Gb/s; nvidia-smi: 81,559 MiB
    "h100": Gpu("h100", 989.4e12, 81559 * 2**20, 3.35e12, 450e9, 50e9),
    # H200 SXM data sheet: the H100's processor and links, 141 GB HBM3e at 4.8 TB/s; nvidia-smi: 143,771 MiB
    "h200": Gpu("h200", 989.4e12, 143771 * 2**20, 4.8e12, 450e9, 50e9),
    # A100 SXM4 data sheet: 312 TFLOP/s, 80 GB HBM2e at 2.039 TB/s, NVLink 600 GB/s both ways; DGX A100 data sheet:
    # eight ConnectX-6 of 200 Gb/s; nvidia-smi: 81,920 MiB
    "a100": Gpu("a100", 312e12, 81920 * 2**20, 2.039e12, 300e9, 25e9, fp8=False),
    # the same of 40 GB HBM2 at 1.555 TB/s; nvidia-smi: 40,960 MiB
    "a100-40gb": Gpu("a100-40gb", 312e12, 40960 * 2**20, 1.555e12, 300e9, 25e9, fp8=False),
}
