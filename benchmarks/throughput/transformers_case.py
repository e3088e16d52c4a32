"""Hugging Face's Llama as an informed user runs it: blocks, last norm and loss compiled, no mask tensor."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from throughput.peer import peer_step
from throughput.shapes import Shape
from throughput.work import Step, Work, device, measure_steps


def measure(work: Work) -> Iterator[dict]:
    yield from measure_steps(work, build)


def build(work: Work) -> Step:
    model = llama(work.shape)
    loss_function = cross_entropy
    if work.compile:
        for module in [*model.model.layers, model.model.norm]:
            module.compile()
        loss_function = torch.compile(cross_entropy)

    def loss(tokens: Tensor, labels: Tensor) -> Tensor:
        return loss_function(model(tokens, use_cache=False).logits, labels)

    return peer_step(model, loss)


def llama(shape: Shape) -> LlamaForCausalLM:
    """bf16, on the device, in training mode."""
    # given no mask, the library's attention passes is_causal=True; its mask builder may make one of [B, 1, T, T]
    modeling_llama.create_causal_mask = lambda *args, **kwargs: None
    config = LlamaConfig(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.ffn_hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_attention_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.seq_length,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    with device():
        return LlamaForCausalLM(config).to(torch.bfloat16).train()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
