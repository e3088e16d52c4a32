"""megatron-core's GPT model from its own modules, with SDPA in the place of its unfused attention."""

import tempfile
from collections.abc import Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn

from throughput.peer import peer_step
from throughput.work import Step, Work, device, measure_steps


def measure(work: Work) -> Iterator[dict]:
    with tempfile.NamedTemporaryFile() as meeting:
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, init_method=f"file://{meeting.name}", rank=0, world_size=1)
        parallel_state.initialize_model_parallel()
        if torch.cuda.is_available():
            tensor_parallel.model_parallel_cuda_manual_seed(0)
        yield from measure_steps(work, build)
        dist.destroy_process_group()


def build(work: Work, tensor_parallel: int = 1) -> Step:
    """`tensor_parallel` ranks, for which parallel_state has been initialised, share each layer."""
    shape = work.shape
    config = TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_hidden_size,
        num_attention_heads=shape.num_attention_heads,
        kv_channels=shape.head_dim,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=F.silu,
        bias_activation_fusion=True,
        add_bias_linear=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        tensor_model_parallel_size=tensor_parallel,
        bf16=True,
        params_dtype=torch.bfloat16,
        use_cpu_initialization=not torch.cuda.is_available(),
        gradient_accumulation_fusion=False,  # its kernel is Apex's
    )
    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    spec.submodules.self_attention.submodules.core_attention = FusedAttention
    model = GPTModel(
        config,
        spec,
        vocab_size=shape.vocab_size,
        max_sequence_length=shape.seq_length,
        position_embedding_type="rope",
    )
    model = model.to(device(), torch.bfloat16).train()
    positions = torch.arange(shape.seq_length, device=device()).expand(work.micro_batch_size, -1)
    return peer_step(model, lambda tokens, labels: model(tokens, positions, None, labels=labels).mean())


class FusedAttention(nn.Module):
    """torch's causal attention behind the interface of megatron-core's DotProductAttention."""

    def __init__(self, config: TransformerConfig, *args: object, **kwargs: object):
        super().__init__()

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *args: object, **kwargs: object) -> Tensor:
        """[T, B, N, D] each -> [T, B, N D]."""
        query, key, value = (states.permute(1, 2, 0, 3) for states in (query, key, value))
        context = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return context.permute(2, 0, 1, 3).flatten(2)
