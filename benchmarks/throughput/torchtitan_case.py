"""torchtitan's Llama 3 blocks with fused q-k-v and SDPA, compiled block by block as its trainer does."""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
import torchtitan.models
from torch import Tensor, nn
from torchtitan.models.common import Embedding, Linear, RMSNorm
from torchtitan.models.common.attention import ScaledDotProductAttention
from torchtitan.models.common.config_utils import make_ffn_config, make_gqa_config
from torchtitan.models.common.rope import CosSinRoPE

from throughput.peer import peer_step
from throughput.shapes import Shape
from throughput.work import Step, Work, device, measure_steps

# the model alone: the package's own __init__ also imports its FSDP, which needs a newer torch than 2.11
_package = ModuleType("torchtitan.models.llama3")
_package.__path__ = [str(Path(torchtitan.models.__file__).parent / "llama3")]
sys.modules[_package.__name__] = _package
from torchtitan.models.llama3.model import Llama3Model, Llama3TransformerBlock  # noqa: E402

_NORMAL = {"weight": partial(nn.init.normal_, std=0.02)}
_ONES = {"weight": nn.init.ones_}


def measure(work: Work) -> Iterator[dict]:
    yield from measure_steps(work, build)


def build(work: Work) -> Step:
    torch.manual_seed(0)
    with device():
        model = _configuration(work.shape).build()
        model.init_states(buffer_device=device())
    # RoPE's tables stay fp32
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    loss_function = cross_entropy
    if work.compile:
        for layer in model.layers.values():
            layer.compile()
        loss_function = torch.compile(cross_entropy)
    return peer_step(model, lambda tokens, labels: loss_function(model(tokens), labels))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


def _configuration(shape: Shape) -> Llama3Model.Config:
    size = shape.hidden_size
    norm = partial(RMSNorm.Config, normalized_shape=size, param_init=_ONES)
    rope = CosSinRoPE.Config(dim=shape.head_dim, max_seq_len=shape.seq_length)
    layers = [
        Llama3TransformerBlock.Config(
            attention_norm=norm(),
            ffn_norm=norm(),
            attention=make_gqa_config(
                dim=size,
                n_heads=shape.num_attention_heads,
                wqkv_param_init=_NORMAL,
                wo_param_init=_NORMAL,
                inner_attention=ScaledDotProductAttention.Config(),
                fuse_qkv=True,
                rope=rope,
            ),
            feed_forward=make_ffn_config(
                dim=size, hidden_dim=shape.ffn_hidden_size, w1_param_init=_NORMAL, w2w3_param_init=_NORMAL
            ),
        )
        for _ in range(shape.num_layers)
    ]
    return Llama3Model.Config(
        dim=size,
        vocab_size=shape.vocab_size,
        tok_embeddings=Embedding.Config(num_embeddings=shape.vocab_size, embedding_dim=size, param_init=_NORMAL),
        norm=norm(),
        lm_head=Linear.Config(in_features=size, out_features=shape.vocab_size, param_init=_NORMAL),
        layers=layers,
    )
