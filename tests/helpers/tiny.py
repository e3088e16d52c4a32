"""A tiny Llama and a batch for it, and one forward and backward pass over a batch on any layout."""

import torch
import torch.distributed as dist

from megasink.checkpoint.weights import hugging_face_name
from megasink.config import ModelConfig
from megasink.model.llama import Llama, blocks_of, token_losses
from megasink.parallel.layout import ParallelLayout
from megasink.parallel.shard import Shard
from megasink.stats.recorder import SinkRecorder


def tiny_config(**changes) -> ModelConfig:
    shape = dict(
        num_layers=3,
        hidden_size=48,
        ffn_hidden_size=64,
        num_attention_heads=4,
        num_query_groups=2,
        head_dim=16,
        vocab_size=91,
        make_vocab_size_divisible_by=32,
        seq_length=24,
        init_method_std=0.2,  # large enough for attention that is far from uniform
    )
    return ModelConfig(**(shape | changes))


def tiny_batch(config: ModelConfig, sequences: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """tokens and labels [S, T]; every sequence has another number of masked labels."""
    generator = torch.Generator().manual_seed(7)
    text = torch.randint(config.vocab_size, (sequences, config.seq_length + 1), generator=generator)
    tokens, labels = text[:, :-1].contiguous(), text[:, 1:].clone()
    for sequence in range(sequences):
        labels[sequence, : 3 * sequence] = -100
    return tokens, labels


def forward_backward(
    config: ModelConfig,
    layout: ParallelLayout,
    dtype: torch.dtype = torch.float64,
    micro_batches: int = 1,
    compiled: bool = False,
) -> dict:
    """Loss, every whole parameter's gradient and the sink report of one batch, on this rank's part of the layout.

    The data-parallel ranks take equal, contiguous parts of the batch. `compiled`: blocks are traced and differentiated
    ahead of time as on a GPU, with eager kernels.
    """
    model = Llama(config, layout, seed=11).to(dtype)
    if compiled:
        for block in blocks_of(model):
            block.run = torch.compile(block.run, backend="aot_eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("theta"):
                heads = torch.linspace(-1.0, 1.0, config.num_key_value_heads, dtype=dtype)
                parameter.copy_(parameter.shard.take(heads))
    tokens, labels = tiny_batch(config)
    valid = (labels != -100).sum()
    tokens, labels = (part.chunk(layout.data.size)[layout.data.rank] for part in (tokens, labels))
    recorder = SinkRecorder(config, layout, blocks_of(model))
    recorder.start()
    loss = torch.zeros((), dtype=dtype)
    for inputs, targets in zip(tokens.chunk(micro_batches), labels.chunk(micro_batches), strict=True):
        part = token_losses(model(inputs), targets, config, layout).sum() / valid
        part.backward()
        loss += part.detach()
    if layout.data.size > 1:
        dist.all_reduce(loss, group=layout.data.group)
    return {
        "loss": loss.item(),
        "gradients": {
            hugging_face_name(config, name): _whole_gradient(parameter, layout)
            for name, parameter in model.named_parameters()
        },
        "report": recorder.report(step=0).arrays,
    }


def _whole_gradient(parameter: torch.nn.Parameter, layout: ParallelLayout) -> torch.Tensor:
    shard: Shard = parameter.shard
    whole = parameter.grad.clone()
    if layout.data.size > 1:
        dist.all_reduce(whole, group=layout.data.group)
    if shard.dim is not None:
        pieces = [torch.empty_like(whole) for _ in range(shard.size)]
        dist.all_gather(pieces, whole, group=layout.tensor.group)
        whole = torch.cat(pieces, dim=shard.dim)
    return whole[: shard.valid]
