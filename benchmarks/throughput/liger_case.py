"""Hugging Face's Llama with Liger's kernels for RMSNorm, RoPE, SwiGLU and cross entropy, blocks not compiled."""

from collections.abc import Iterator

from liger_kernel.transformers import LigerCrossEntropyLoss, apply_liger_kernel_to_llama
from torch import Tensor

from throughput.peer import peer_step
from throughput.transformers_case import llama
from throughput.work import Step, Work, measure_steps


def measure(work: Work) -> Iterator[dict]:
    yield from measure_steps(work, build)


def build(work: Work) -> Step:
    apply_liger_kernel_to_llama(rope=True, rms_norm=True, swiglu=True, fused_linear_cross_entropy=False)
    model, cross_entropy = llama(work.shape), LigerCrossEntropyLoss()
    if work.case == "liger-compiled" and work.compile:
        for layer in model.model.layers:
            layer.compile()

    def loss(tokens: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(model(tokens, use_cache=False).logits.flatten(0, 1), labels.flatten())

    return peer_step(model, loss)
