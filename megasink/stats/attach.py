"""The sink statistics of a model that is not megasink's: a transformers Llama, or any list of Llama-shaped blocks.

    with attach(model) as recorder:
        recorder.start("full")
        model(input_ids=tokens, labels=tokens).loss.backward()
        report = recorder.report(step=0)

Hooks put the same taps (megasink.model.taps) at the same places as in megasink's own block; attention is recorded at
its call of `torch.nn.functional.scaled_dot_product_attention`. Nothing of the model is copied or changed for good.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from operator import attrgetter

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from megasink.config import ModelConfig
from megasink.model.activation_statistics import activation_moments, activation_order
from megasink.model.attention import causal_attention, tap_attention
from megasink.model.taps import BlockTaps, split_paths, sum_of_squares, tap_gradient, tap_value, widen
from megasink.parallel.layout import Axis, ParallelLayout
from megasink.stats.recorder import SinkRecorder


@dataclass(frozen=True)
class BlockNames:
    """Attribute paths of a block's parts; the defaults are transformers' Llama's."""

    attention_norm: str = "input_layernorm"
    attention: str = "self_attn"
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    v_scale: str = "self_attn.v_scale"
    """Optional; with a parameter `theta` [K] and `initial_c`, applied by a forward hook on the value projection."""
    mlp_norm: str = "post_attention_layernorm"
    mlp: str = "mlp"


def attach(model: nn.Module, layout: ParallelLayout | None = None) -> "AttachedRecorder":
    """A recorder for a transformers Llama (or a model of its block structure), as a context manager.

    Sequences must be whole: no padding, no KV cache, attention by SDPA (transformers' default), no dropout. Gradients
    are those of the loss that `backward` is called on; for `layout` with data parallelism that must be the sum over
    valid tokens divided by their number on all ranks.
    """
    config = model.config
    shape = ModelConfig(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        num_query_groups=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        vocab_size=config.vocab_size,
        norm_epsilon=config.rms_norm_eps,
        init_method_std=config.initializer_range,
    )
    return attach_blocks(model.model.layers, shape, layout=layout)


def attach_blocks(
    blocks: Iterable[nn.Module],
    config: ModelConfig,
    names: BlockNames | None = None,
    layout: ParallelLayout | None = None,
) -> "AttachedRecorder":
    """As `attach`, for any blocks h -> h + attention(norm(h)) -> + mlp(norm(.)), each called with h first.

    Args:
        config: the blocks' shape: num_layers, hidden_size, heads, head_dim (V-scale is found by itself, and added in a
            copy).
        names: where a block has its parts.
        layout: data parallelism over the ranks of an initialised world (megasink.parallel.layout.build_layout()).
    """
    names = names or BlockNames()
    return AttachedRecorder([_HookedBlock(block, index, names) for index, block in enumerate(blocks)], config, layout)


class AttachedRecorder(SinkRecorder):
    """A SinkRecorder whose blocks are hooked while its `with` lasts."""

    def __init__(self, blocks: list["_HookedBlock"], config: ModelConfig, layout: ParallelLayout | None):
        v_scale = blocks[0].v_scale
        if v_scale is not None:
            std = math.sqrt(v_scale.initial_c / (config.hidden_size * config.kv_channels))
            config = replace(config, v_scale="on", init_method_std=std)
        super().__init__(config, layout or ParallelLayout(), blocks)

    def __enter__(self) -> "AttachedRecorder":
        for block in self.blocks:
            block.hook(self.config.kv_channels)
        return self

    def __exit__(self, *_) -> None:
        for block in self.blocks:
            block.unhook()


class _HookedBlock:
    """One block, the taps of its present forward pass, and the hooks that place them."""

    def __init__(self, block: nn.Module, layer_index: int, names: BlockNames):
        self.block = block
        self.layer_index = layer_index
        self.names = names
        self.recorder: SinkRecorder | None = None
        self.taps = BlockTaps()
        self.paths: tuple[Tensor, ...] | None = None
        """The attention's input once for each of query, key and value, where they are told apart."""
        self.handles: list[RemovableHandle] = []
        self.v_scale = self._optional_part(names.v_scale)

    def hook(self, head_dim: int) -> None:
        self.head_dim = head_dim
        names = self.names
        self._before(self.block, self._enter_block)
        self._after(self.block, self._leave_block)
        norm, attention, mlp_norm, mlp = map(
            self._part, (names.attention_norm, names.attention, names.mlp_norm, names.mlp)
        )
        self._before(norm, lambda x: tap_gradient(x, self.taps.attention_norm_input_grad))
        self._after(norm, lambda x: self._enter_attention(tap_gradient(x, self.taps.attention_norm_grad)))
        self._before(mlp_norm, self._enter_mlp_norm)
        self._after(mlp_norm, lambda x: tap_gradient(x, self.taps.mlp_norm_grad))
        self._after(mlp, self._leave_mlp)
        self._after(attention, lambda x: tap_gradient(x, self.taps.middle_grad))
        for place, name in enumerate((names.query, names.key, names.value)):
            self._before(self._part(name), lambda x, place=place: x if self.paths is None else self.paths[place])
        self._after(self._part(names.query), lambda x: self._tap_heads(x, self.taps.query_grad, None))
        self._after(self._part(names.key), lambda x: self._tap_heads(x, self.taps.key_grad, None))
        value = self._part(names.value)  # V-scale is a hook there: v before it, v_hat behind
        self._after(value, lambda x: self._tap_heads(x, self.taps.value_grad, self.taps.value), first=True)
        self._after(value, self._leave_value)
        attention.forward = self._intercepted(attention.forward)

    def unhook(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        del self._part(self.names.attention).forward
        self.taps = BlockTaps()

    def _enter_block(self, hidden_states: Tensor) -> Tensor:
        self.taps = self.recorder.open(self.layer_index, hidden_states) or BlockTaps()
        hidden_states = tap_gradient(hidden_states, self.taps.block_input_grad)
        return tap_value(hidden_states, self.taps.block_input, sum_of_squares, hidden_states)

    def _enter_attention(self, hidden_states: Tensor) -> Tensor:
        leaf = self.taps.attention_paths
        self.paths = None if leaf is None else split_paths(hidden_states, leaf)
        return hidden_states

    def _tap_heads(self, states: Tensor, gradient_leaf: Tensor | None, value_leaf: Tensor | None) -> Tensor:
        heads = tap_gradient(states.unflatten(-1, (-1, self.head_dim)), gradient_leaf)
        return tap_value(heads, value_leaf, sum_of_squares, heads).flatten(-2)

    def _leave_value(self, value_hat: Tensor) -> Tensor:
        value_hat = self._tap_heads(value_hat, self.taps.value_hat_grad, self.taps.value_hat)
        return tap_value(value_hat, self.taps.theta, lambda: widen(self.v_scale.theta).clone())

    def _enter_mlp_norm(self, hidden_states: Tensor) -> Tensor:
        hidden_states = tap_value(hidden_states, self.taps.middle, sum_of_squares, hidden_states)
        return tap_gradient(hidden_states, self.taps.mlp_norm_input_grad)

    def _leave_mlp(self, output: Tensor) -> Tensor:
        output = tap_value(output, self.taps.mlp_output, sum_of_squares, output)
        output = tap_value(output, self.taps.mlp_output_moments, activation_moments, output)
        return tap_value(output, self.taps.mlp_output_order, activation_order, output, Axis())

    def _leave_block(self, output: Tensor) -> Tensor:
        output = tap_gradient(output, self.taps.block_output_grad)
        output = tap_value(output, self.taps.block_output, sum_of_squares, output)
        output = tap_value(output, self.taps.block_output_moments, activation_moments, output)
        return tap_value(output, self.taps.block_output_order, activation_order, output, Axis())

    def _intercepted(self, forward):
        def recorded(*args, **kwargs):
            if self.taps.attention_sink is None:
                return forward(*args, **kwargs)
            with _RecordedAttention(self.taps) as attention:
                output = forward(*args, **kwargs)
            if attention.calls != 1:
                raise ValueError(
                    f"block {self.layer_index} called scaled_dot_product_attention {attention.calls} times, not once; "
                    "load the model with attn_implementation='sdpa'"
                )
            return output

        return recorded

    def _before(self, module: nn.Module, change) -> None:
        """Let `change` replace a module's first tensor argument."""

        def hook(_module, args, kwargs):
            if args:
                return (change(args[0]), *args[1:]), kwargs
            return args, kwargs | {"hidden_states": change(kwargs["hidden_states"])}

        self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _after(self, module: nn.Module, change, first: bool = False) -> None:
        """Let `change` replace a module's output, or the first of several."""

        def hook(_module, _args, output):
            return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

        self.handles.append(module.register_forward_hook(hook, prepend=first))

    def _part(self, path: str) -> nn.Module:
        return attrgetter(path)(self.block)

    def _optional_part(self, path: str) -> nn.Module | None:
        try:
            return self._part(path)
        except AttributeError:
            return None


class _RecordedAttention(TorchFunctionMode):
    """Inside, scaled_dot_product_attention runs through the kernel that also gives the log-sum-exp, and is tapped."""

    def __init__(self, taps: BlockTaps):
        super().__init__()
        self.taps = taps
        self.calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.calls += 1
        return self._attend(*args, **(kwargs or {}))

    def _attend(
        self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
    ) -> Tensor:
        """query [B, N, T, head_dim], key and value [B, N or K, T, head_dim] -> [B, N, T, head_dim]."""
        default_scale = scale is None or math.isclose(scale, query.shape[-1] ** -0.5)
        whole = query.shape[-2] == key.shape[-2]
        if attn_mask is not None or dropout_p or not is_causal or not default_scale or not whole:
            raise ValueError(
                "sink statistics need causal attention over whole sequences, without mask (so without padding), "
                "dropout, KV cache or an own scale"
            )
        if enable_gqa:
            repeats = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        context, log_sum_exp = causal_attention(query, key, value)
        return tap_attention(context, query, key, value, log_sum_exp, None, self.taps)
