"""A rank of another library's training: run(), with FOLDER STEPS PROFILED PEER SHAPE MICRO_BATCH MICRO_BATCHES.

fsdp2-torchtitan, fsdp2-transformers: the models of benchmarks/throughput, sharded by torch's fully_shard as torchtitan
does it: bf16 weights, fp32 masters and gradient sums, each block compiled and gathered by itself, AdamW fused.
megatron-tp: megatron-core's GPT model, each layer split over all ranks; the loop is ours (throughput/peer.py), and
clips by each rank's own norm.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from throughput.shapes import Shape, shape_named
from throughput.work import BETAS, CLIP, EPSILON, LEARNING_RATE, WEIGHT_DECAY, Work, best_attention, device
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

PEERS = {"fsdp2-torchtitan": "torchtitan", "fsdp2-transformers": "transformers", "megatron-tp": "megatron-core"}
"""Names, and the package that each needs."""


def run() -> None:
    folder, steps, profiled, peer, shape, micro_batch_size, micro_batches = sys.argv[1:]
    work = Work(
        case=peer,
        shape=shape_named(shape),
        micro_batch_size=int(micro_batch_size),
        accumulate=(int(micro_batches),),
        steps=int(steps),
        warmup=0,
        compile=torch.cuda.is_available(),
        scratch=folder,
    )
    train(Path(folder), int(steps), int(profiled), peer, work)


def torchtitan_model(shape: Shape) -> tuple[nn.Module, list[nn.Module]]:
    """fp32, on the device; and its blocks."""
    from throughput.torchtitan_case import _configuration

    with device():
        model = _configuration(shape).build()
        model.init_states(buffer_device=device())
    return model, list(model.layers.values())


def transformers_model(shape: Shape) -> tuple[nn.Module, list[nn.Module]]:
    from throughput.transformers_case import llama

    model = llama(shape).float()
    return _Logits(model), list(model.model.layers)


class _Logits(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens, use_cache=False).logits


def shard(model: nn.Module, blocks: list[nn.Module]) -> FSDPModule:
    mesh = init_device_mesh(device().type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in blocks:
        if device().type == "cuda":
            block.compile()
        fully_shard(block, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def fsdp2_step(peer: str, work: Work) -> Callable[[], None]:
    from throughput.transformers_case import cross_entropy

    build = torchtitan_model if peer == "fsdp2-torchtitan" else transformers_model
    model = shard(*build(work.shape))
    loss_function = torch.compile(cross_entropy) if work.compile else cross_entropy
    settings = {"lr": LEARNING_RATE, "betas": BETAS, "eps": EPSILON, "weight_decay": WEIGHT_DECAY}
    optimizer = torch.optim.AdamW(model.parameters(), fused=device().type == "cuda", **settings)
    batch = work.batch(work.accumulate[0], seed=dist.get_rank())

    def step() -> None:
        for at, (tokens, labels) in enumerate(batch):
            model.set_requires_gradient_sync(at == len(batch) - 1)
            (loss_function(model(tokens), labels) / len(batch)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()

    return step


def megatron_step(work: Work) -> Callable[[], None]:
    from megatron.core import parallel_state, tensor_parallel
    from throughput.megatron_case import build

    parallel_state.initialize_model_parallel(tensor_model_parallel_size=dist.get_world_size())
    if torch.cuda.is_available():
        tensor_parallel.model_parallel_cuda_manual_seed(0)
    step = build(work, tensor_parallel=dist.get_world_size())
    batch = work.batch(work.accumulate[0], seed=0)
    return lambda: step(batch)


def train(folder: Path, steps: int, profiled: int, peer: str, work: Work) -> None:
    from multi_gpu.measured_rank import finish, profile_of_ranks, synchronize

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    torch.manual_seed(0)
    (folder / "run").mkdir(exist_ok=True)
    with best_attention(), open(folder / "run" / "metrics.jsonl", "a") as file:
        step = megatron_step(work) if peer == "megatron-tp" else fsdp2_step(peer, work)
        for number in range(1, steps + 1):
            synchronize()
            began = time.perf_counter()
            step()
            synchronize()
            if dist.get_rank() == 0:
                file.write(json.dumps({"step": number, "step_time_s": time.perf_counter() - began}) + "\n")
        file.flush()
        profiler = profile_of_ranks()
        profiler.start()
        for _ in range(profiled):
            step()
        synchronize()
        profiler.stop()
    finish(folder, profiler, profiled)
