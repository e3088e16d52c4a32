"""A plan as text: one screen."""

from collections.abc import Sequence

from megasink.config import RunConfig
from megasink.model.flops import flops_per_token, num_parameters
from megasink.plan.checkpoint_size import checkpoint_bytes, consolidated_bytes, kept_checkpoints
from megasink.plan.gpus import RESERVED
from megasink.plan.holdings import tensor_holdings
from megasink.plan.plan import Plan
from megasink.plan.search import changed_flags
from megasink.plan.timing import bandwidth, message_time

GIB = 2**30


def describe(plan: Plan, target_tokens: float) -> list[str]:
    return [
        headline(plan),
        "",
        *_layout(plan),
        "",
        *_memory(plan),
        "",
        *_messages(plan),
        "",
        *_time(plan),
        "",
        *_run(plan, target_tokens),
    ]


def headline(plan: Plan) -> str:
    model, machine = plan.config.model, plan.machine
    return (
        f"{num_parameters(model) / 1e9:.2f}B parameters, {flops_per_token(model) / 1e9:.1f} GFLOP a token, on "
        f"{machine.world_size} {machine.gpu.name} ({machine.nodes} x {machine.gpus_per_node}): {layout_name(plan)}"
    )


def layout_name(plan: Plan) -> str:
    parallel, training = plan.config.parallel, plan.config.training
    names = [f"TP {parallel.tensor_model_parallel_size}{' + SP' if parallel.sequence_parallel else ''}"]
    names.append(f"PP {parallel.pipeline_model_parallel_size}")
    if parallel.context_parallel_size > 1:
        names.append(f"CP {parallel.context_parallel_size}")
    names += [f"DP {plan.replicas // parallel.context_parallel_size}", f"ZeRO-{parallel.zero_stage}"]
    return f"{', '.join(names)}, recompute {parallel.recompute}, micro-batch {training.micro_batch_size}"


def ranking(plans: Sequence[Plan], asked: RunConfig, most: int = 10) -> list[str]:
    """Of --search: the fastest plans, and the flags that make them of what was asked."""
    lines = ["rank  step s   MFU   GiB  flags"]
    for at, plan in enumerate(plans[:most], start=1):
        flags = " ".join(changed_flags(asked, plan.config)) or "(as asked)"
        lines.append(f"{at:>4}  {plan.step_time:6.2f}  {100 * plan.mfu:4.1f}  {plan.peak / GIB:4.1f}  {flags}")
    return lines


def _layout(plan: Plan) -> list[str]:
    lines = ["Layout: rank = ((pipeline x DP + data) x CP + context) x TP + tensor"]
    for at, (held, parameters) in enumerate(zip(plan.stage_holdings(), plan.parameters, strict=True)):
        parts = ["embedding"] if held.embedding else []
        parts += [f"blocks {_range(held.blocks)}"] + (["norm, output"] if held.output else [])
        ranks, size = f"ranks {_range(held.ranks)}", f"{parameters.total / 1e9:.3f}B parameters a rank"
        lines.append(f"  stage {at:<3} {ranks:<18} {', '.join(parts):<38} {size}")
    if len(lines) > 9:
        lines[4:-3] = [f"  ... {len(lines) - 7} more stages"]
    shares = tensor_holdings(plan.config)
    for rank, share in enumerate(shares) if len(shares) > 1 else ():
        if rank in (0, 1, len(shares) - 1):
            lines.append(
                f"  tensor rank {rank:<3} query heads {_range(share.query_heads)}, key-value heads "
                f"{_range(share.key_value_heads)}, MLP columns {_range(share.mlp_columns)}, vocabulary rows "
                f"{_range(share.vocabulary_rows)}"
            )
    return lines


def _range(half_open: tuple[int, int]) -> str:
    first, last = half_open[0], half_open[1] - 1
    return str(first) if first == last else f"{first}-{last}"


def _memory(plan: Plan) -> list[str]:
    memory = plan.memory[plan.fullest]
    where = f", a rank of stage {plan.fullest}, the fullest" if len(plan.memory) > 1 else ""
    parts = "  ".join(f"{name} {size / GIB:.2f}" for name, size in vars(memory).items())
    room = (
        f"{plan.machine.gpu.memory / GIB:.1f} GiB of an {plan.machine.gpu.name}, less {RESERVED / GIB:.0f} for CUDA, "
        "NCCL and fragments"
    )
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    return [f"Memory, GiB{where}", f"  {parts}", f"  total {memory.total / GIB:.2f}: {verdict} ({room})"]


def _messages(plan: Plan) -> list[str]:
    stage = plan.slowest
    if not plan.messages[stage]:
        return ["Messages: none, one rank holds all"]
    where = f", stage {stage}" if len(plan.messages) > 1 else ""
    lines = [f"Messages of a step, each rank{where}       GiB sent   times    GB/s  seconds"]
    of = (plan.config, plan.replicas, plan.machine.gpu, plan.machine.gpus_per_node)
    for message in plan.messages[stage]:
        speed = bandwidth(message, *of)
        link = "NVLink" if speed == plan.machine.gpu.nvlink else "network"
        name = f"{message.kind}: {message.operation} over {message.ranks}"
        lines.append(
            f"  {name:<40} {message.wire_bytes / GIB:8.2f} {message.times:7} {speed / 1e9:7.0f} "
            f"{message_time([message], *of):8.3f}  {link}"
        )
    return lines


def _time(plan: Plan) -> list[str]:
    time = plan.times[plan.slowest]
    parts = "  ".join(f"{name} {seconds:.3f}" for name, seconds in vars(time).items() if seconds > 0)
    per_gpu = plan.tokens_per_second / plan.machine.world_size
    return [
        f"Time of a step, s ({plan.micro_batches} micro-batches; pipeline bubble {100 * plan.bubble:.1f} %)",
        f"  {parts}",
        f"  total {time.total:.3f}: MFU {100 * plan.mfu:.1f} %, {per_gpu:,.0f} tokens/s a GPU",
    ]


def _run(plan: Plan, target_tokens: float) -> list[str]:
    config, days = plan.config, plan.days(target_tokens)
    count = kept_checkpoints(config.checkpoint, config.training.train_iters)
    each = checkpoint_bytes(config)
    return [
        f"Run: {plan.tokens_per_second * 86400 / 1e9:,.1f}B tokens a day; {target_tokens / 1e9:,.1f}B tokens = "
        f"{target_tokens / plan.tokens_per_step:,.0f} steps of {plan.tokens_per_step / 1e6:.2f}M: {days:.1f} days, "
        f"{24 * days * plan.machine.world_size:,.0f} GPU-hours",
        f"  checkpoints: {each / GIB:,.1f} GiB each, {consolidated_bytes(config) / GIB:,.1f} of it model.safetensors; "
        f"{count} kept = {count * each / GIB:,.0f} GiB",
    ]
