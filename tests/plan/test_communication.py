"""The planner's messages against those that the real training command sends on gloo ranks, and the model on a pretended
group of any size."""

import json
from collections import Counter
from pathlib import Path

import pytest

from megasink.config import RunConfig
from megasink.config.cli import from_dict
from megasink.plan.checkpoint_size import checkpoint_bytes
from megasink.plan.communication import PERSISTENT, Message, step_messages
from megasink.plan.memory import REDUCE_BUCKET, static_bytes
from megasink.plan.meta_model import meta_stage
from megasink.plan.parameters import parameter_sizes, stage_parameters
from tests.helpers.jobs import Job
from tests.plan.counting import CollectiveCounter

SMALL_TALK = 64
"""Bytes; messages up to here are a few numbers (norm, loss, number of tokens)."""
MODEL = {
    "num_layers": 4,
    "hidden_size": 320,
    "ffn_hidden_size": 512,
    "num_attention_heads": 8,
    "num_query_groups": 4,
    "vocab_size": 64,
    "seq_length": 32,
    "v_scale": "on",
}
SP = {"sequence_parallel": True}
CASES = {
    "tp2_pp2": (4, {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}, {}),
    "tp2_sp_dp2": (4, {"tensor_model_parallel_size": 2, "recompute": "selective"} | SP, {}),
    "dp2_zero1": (2, {"zero_stage": 1}, {}),
    "dp2_zero2": (2, {"zero_stage": 2}, {}),
    "dp2_zero3": (2, {"zero_stage": 3}, {}),
    "pp2_tied": (2, {"pipeline_model_parallel_size": 2}, {"untie_embeddings_and_output_weights": False}),
}


def totals(messages: list[Message]) -> Counter[str]:
    found: Counter[str] = Counter()
    for message in messages:
        if message.size > SMALL_TALK:
            found[message.operation] += message.size * message.times
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_training_command_sends_and_keeps_what_the_plan_says(name, tokens, tmp_path):
    ranks, parallel, model = CASES[name]
    training = {"train_iters": 2, "micro_batch_size": 2, "global_batch_size": 8, "precision": "bf16"}
    sections = {
        "model": MODEL | model,
        "parallel": parallel,
        "training": training,
        "data": {"data_path": [str(tokens)]},
        "checkpoint": {"save": str(tmp_path / "run"), "save_interval": 0},
        "sink_stats": {"sink_stats": "off"},
        "logging": {"wandb_mode": "disabled"},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(sections))
    program = f"from tests.plan.counting import train_counted; train_counted({str(tmp_path / 'found')!r})"
    outcome = Job("--config", tmp_path / "run.yaml", ranks=ranks, program=program).wait()
    assert outcome.codes == [0] * ranks, outcome.output

    config = from_dict(RunConfig, sections, "test")
    stages = config.parallel.pipeline_model_parallel_size
    replicas = ranks // stages // config.parallel.tensor_model_parallel_size
    for rank in range(ranks):
        stage = rank * stages // ranks
        found = json.loads(Path(f"{tmp_path / 'found'}.{rank}").read_text())
        sent: Counter[str] = Counter()
        for operation, group, size, times in found["calls"]:
            if group > 1 and size > SMALL_TALK and operation != "receive":
                sent[operation] += size * times
        assert sent == pytest.approx(totals(step_messages(config, replicas, stage)), rel=1e-3)
        assert found["alive"] == pytest.approx(between_steps(config, replicas, stage), rel=0.02)
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step_00000002")
    written = sum(file.stat().st_size for file in checkpoint.iterdir())
    assert written == pytest.approx(checkpoint_bytes(config), rel=0.03)


def between_steps(config: RunConfig, replicas: int, stage: int) -> int:
    """Bytes of a rank's tensors when a step is done."""
    parameters = stage_parameters(config.model, config.parallel)[stage].total
    weights, gradients, optimizer = static_bytes(config, parameters, replicas)
    straggler_matrix = 256 * 256 * 4
    alive = weights + gradients + optimizer + straggler_matrix
    if config.parallel.zero_stage == 2:
        alive -= gradients  # made anew in every step
    if config.parallel.zero_stage == 3:
        sizes = parameter_sizes(config.model, config.parallel, stage)
        alive += 2 * REDUCE_BUCKET + 2 * sum(size * count for size, count in sizes.items() if size <= PERSISTENT)
    return alive


PRETENDED = [
    {"tensor_model_parallel_size": 2},
    {"tensor_model_parallel_size": 8},
    {"tensor_model_parallel_size": 4, "recompute": "selective"},
    {"tensor_model_parallel_size": 4, "recompute": "full"},
    {"tensor_model_parallel_size": 8} | SP,
    {"tensor_model_parallel_size": 2, "recompute": "selective"} | SP,
    {"tensor_model_parallel_size": 2, "recompute": "full", "context_parallel_size": 2} | SP,
    {"context_parallel_size": 4},
    {"tensor_model_parallel_size": 2, "context_parallel_size": 2, "recompute": "selective"},
]


@pytest.mark.parametrize("parallel", PRETENDED, ids=str)
@pytest.mark.parametrize("stages", [1, 2])
def test_a_micro_batch_sends_what_the_plan_says(parallel, stages):
    """Forward and backward pass of every stage on the meta device, message by message."""
    context = parallel.get("context_parallel_size", 1)
    sections = {
        "model": MODEL | {"num_layers": 3},
        "parallel": parallel | {"pipeline_model_parallel_size": stages},
        "training": {"micro_batch_size": 2, "global_batch_size": 2},
    }
    config = from_dict(RunConfig, sections, "test")
    for stage in range(stages):
        with meta_stage(config, stage) as held, CollectiveCounter() as counter:
            for block in held.blocks():
                block.prepare(config.parallel.recompute)
            inputs = held.inputs()
            if not held.is_first:
                inputs.requires_grad_()
            outputs = held.forward(inputs)
            (held.losses(outputs) if held.is_last else outputs).sum().backward()
        planned: Counter[tuple] = Counter()
        for message in step_messages(config, context, stage):
            if message.axis in ("tensor", "context"):
                planned[message.operation, message.ranks, message.size] += message.times
        found = {call: times for call, times in counter.calls.items() if call[2] > SMALL_TALK}
        assert found == {call: times for call, times in planned.items() if call[2] > SMALL_TALK}
