"""The planner's step time against published runs of other programs: the table of docs/planning.md, in Markdown.

    PYTHONPATH=. python benchmarks/plan_published.py

Megatron-LM's are GPT models: a GELU MLP of 4 widths has the weights and operations of a SwiGLU of 8/3. Its TFLOP/s
count attention without the causal half: 72 L H^2 (1 + T / 6H + V / 12HL) a token (arXiv 2104.04473, section 3.3,
without recomputation), by which they become tokens/s here.
"""

import argparse
from dataclasses import dataclass

from megasink.config import ModelConfig, ParallelConfig, RunConfig, TrainingConfig
from megasink.plan.plan import Machine, Plan, make_plan


@dataclass(frozen=True)
class Published:
    """A run as its source describes it; what the source does not say is chosen: see `row`."""

    name: str
    model: ModelConfig
    parallel: ParallelConfig
    micro_batch: int
    global_batch: int
    gpus: int
    tokens_per_second_per_gpu: float


def megatron(
    name: str, heads: int, hidden: int, layers: int, tensor: int, stages: int, gpus: int, batch: int, tflops: float
) -> Published:
    """A row of images/model_table.png of NVIDIA/Megatron-LM at d98e8a6: H100, T 4,096, vocabulary 131,072."""
    length, vocabulary = 4096, 131072
    model = ModelConfig(
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=-(-8 * hidden // 3 // 64) * 64,
        num_attention_heads=heads,
        vocab_size=vocabulary,
        seq_length=length,
    )
    operations = 72 * layers * hidden**2 * (1 + length / (6 * hidden) + vocabulary / (12 * hidden * layers))
    parallel = ParallelConfig(
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=stages,
        sequence_parallel=tensor > 1,
        recompute="selective",
    )
    return Published(f"Megatron-LM {name}", model, parallel, 1, batch, gpus, tflops * 1e12 / operations)


def llama3(size: str) -> ModelConfig:
    shapes = {"8B": (32, 4096, 14336, 32), "70B": (80, 8192, 28672, 64)}
    layers, hidden, ffn, heads = shapes[size]
    return ModelConfig(
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=ffn,
        num_attention_heads=heads,
        num_query_groups=8,
        vocab_size=128256,
        seq_length=8192,
    )


def torchtitan(size: str, gpus: int, tensor: int, micro_batch: int, recompute: str, tokens: float) -> Published:
    """Rows without float8 of pytorch/torchtitan's benchmarks/*.md at b5bcd76; FSDP is our ZeRO-3."""
    parallel = ParallelConfig(
        tensor_model_parallel_size=tensor, sequence_parallel=tensor > 1, zero_stage=3, recompute=recompute
    )
    batch = micro_batch * gpus // tensor
    return Published(f"torchtitan Llama 3.1 {size}", llama3(size), parallel, micro_batch, batch, gpus, tokens)


RUNS = [
    megatron("1.7B", 16, 2048, 24, 1, 1, 48, 192, 408.8),
    megatron("7.1B", 32, 4096, 30, 2, 1, 96, 192, 465.9),
    megatron("16B", 48, 6144, 32, 4, 1, 192, 192, 489.1),
    megatron("32B", 56, 7168, 48, 8, 1, 384, 192, 459.6),
    megatron("70B", 64, 8192, 84, 8, 2, 768, 384, 419.7),
    megatron("119B", 80, 10240, 92, 8, 4, 1536, 768, 420.5),
    megatron("177B", 96, 12288, 96, 8, 6, 2304, 1152, 432.8),
    megatron("314B", 128, 16384, 96, 8, 8, 3072, 1536, 474.4),
    megatron("462B", 144, 18432, 112, 8, 16, 6144, 3072, 459.9),
    torchtitan("8B", 8, 1, 2, "selective", 6667),
    torchtitan("8B", 128, 1, 2, "selective", 6514),
    torchtitan("70B", 256, 8, 16, "full", 597.3),
]


def plan_of(run: Published) -> Plan:
    training = TrainingConfig(micro_batch_size=run.micro_batch, global_batch_size=run.global_batch)
    config = RunConfig(run.model, run.parallel, training=training)
    config.sink_stats.sink_stats = "off"
    config.checkpoint.save = "unused"
    return make_plan(config, Machine.of(run.gpus // 8, 8, "h100"))


def row(run: Published) -> str:
    plan = plan_of(run)
    planned = plan.tokens_per_second / run.gpus
    error = planned / run.tokens_per_second_per_gpu - 1
    time = plan.times[plan.slowest]
    silent = planned * time.total / (time.total - time.tensor - time.pipeline - time.replicas)
    parallel = run.parallel
    layout = f"TP {parallel.tensor_model_parallel_size}, PP {parallel.pipeline_model_parallel_size}"
    cells = [
        run.name,
        f"{run.gpus} ({run.gpus // 8})",
        layout,
        f"{run.tokens_per_second_per_gpu:,.0f}",
        f"{planned:,.0f}",
        f"{100 * error:+.0f} %",
        f"{silent:,.0f}",
        f"{100 * plan.bubble:.0f} %",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("| run | GPUs (nodes) | layout | published | planned | difference | planned, messages hidden | bubble |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for run in RUNS:
        print(row(run))


if __name__ == "__main__":
    main()
