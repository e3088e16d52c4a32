"""Gathers what the taps of each block report during a step, and makes one report of the whole batch from it."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from megasink.config import ModelConfig
from megasink.model.block import Block
from megasink.model.taps import BlockTaps
from megasink.parallel.collectives import all_reduce
from megasink.parallel.layout import ParallelLayout
from megasink.stats.measures import bin_sums, first_over_early, gradient_sink_ratio, position_bins
from megasink.stats.reduce import SumOverWorld
from megasink.stats.report import SinkReport


class SinkRecorder:
    """Statistics of one batch on one rank: `start()`, any number of forward and backward passes, `report()`.

    Outside start/report the blocks run without taps and nothing is recorded.
    """

    def __init__(self, config: ModelConfig, layout: ParallelLayout, blocks: Iterable[Block]):
        self.config = config
        self.layout = layout
        self.recording = False
        self.micro_batches: dict[int, list[BlockTaps]] = defaultdict(list)
        self.blocks = list(blocks)
        for block in self.blocks:
            block.recorder = self

    def start(self) -> None:
        """Record every forward pass with gradients from here on."""
        self.micro_batches.clear()
        self.recording = True

    def open(self, block: Block, hidden_states: Tensor) -> BlockTaps | None:
        """Fresh zero leaves for one forward pass of one block; their gradients are kept when its backward is done."""
        if not self.recording:
            return None
        batch, local_length = hidden_states.shape[:2]
        length = local_length * (self.layout.tensor.size if self.layout.sequence_parallel else 1)
        attention = block.self_attn

        def leaf(*shape: int) -> Tensor:
            dtype = torch.promote_types(hidden_states.dtype, torch.float32)
            return torch.zeros(shape, dtype=dtype, device=hidden_states.device, requires_grad=True)

        taps = BlockTaps(
            attention_norm_grad=leaf(batch, local_length),
            value_grad=leaf(batch, length, attention.num_key_value_heads),
            value=leaf(batch, length, attention.num_key_value_heads),
            attention_sink=leaf(batch, attention.num_heads),
            mlp_output=leaf(batch, local_length),
            block_output=leaf(batch, local_length),
        )
        keep = self.micro_batches[block.layer_index]
        torch.autograd.graph.register_multi_grad_hook(taps, lambda grads: keep.append(BlockTaps(*grads)))
        return taps

    def report(self, step: int, gradient_scale: float = 1.0) -> SinkReport:
        """Reduce over all ranks and stop recording. Every rank must call this; every rank gets the whole report.

        Args:
            step: number of optimizer steps the weights had seen.
            gradient_scale: what recorded gradients are multiplied with to be those of the whole batch's loss.
        """
        self.recording = False
        config, layout = self.config, self.layout
        sample = next(iter(self.micro_batches.values()))
        count, (batch, length) = len(sample), sample[0].value_grad.shape[:2]
        sequences = count * batch * layout.data.size
        starts, ends = position_bins(length)
        sums = SumOverWorld(layout, config.num_layers, sequences, len(starts), self.blocks[0].self_attn)

        for block in self.blocks:
            recorded = self.micro_batches[block.layer_index]
            taps = BlockTaps(*(torch.stack(entries) for entries in zip(*recorded, strict=True)))
            layer = block.layer_index
            value_grad = taps.value_grad.sqrt() * gradient_scale
            sums.add_key_value_heads("value_grad_norm", layer, bin_sums(_tokens_last(value_grad), starts))
            sums.add_key_value_heads("value_norm", layer, bin_sums(_tokens_last(taps.value.sqrt()), starts))
            sums.add_heads("attention_sink", layer, taps.attention_sink.double().sum(dim=(0, 1)))

            value_grad_squares = taps.value_grad * sums.key_value_head_weight
            all_heads = all_reduce(value_grad_squares.sum(dim=-1), layout.tensor).sqrt() * gradient_scale
            sums.add_replicated("value_grad_norm_all", layer, bin_sums(all_heads, starts).sum(dim=(0, 1)))
            norm_grad, mlp_output, block_output = (
                self._whole_sequence(entry).sqrt()
                for entry in (taps.attention_norm_grad, taps.mlp_output, taps.block_output)
            )
            sums.add_replicated("mlp_out_norm", layer, bin_sums(mlp_output, starts).sum(dim=(0, 1)))
            sums.add_replicated("hidden_norm", layer, bin_sums(block_output, starts).sum(dim=(0, 1)))
            sums.add_replicated("hidden_t0_over_early", layer, first_over_early(block_output).double().sum())
            sums.add_sequences("gradient_sink_ratio", layer, gradient_sink_ratio(norm_grad))
            sums.add_sequences("gradient_sink_ratio_early", layer, first_over_early(norm_grad))
            if block.self_attn.v_scale is not None:
                theta, c = block.self_attn.v_scale.theta_and_c()
                once = 1.0 if layout.data.rank == 0 else 0.0
                sums.add_key_value_heads("theta", layer, theta * once)
                sums.add_key_value_heads("v_scale_c", layer, c * once)
        self.micro_batches.clear()

        arrays = sums.reduce()
        widths = torch.tensor(ends) - torch.tensor(starts)
        for name in ("value_grad_norm", "value_norm", "value_grad_norm_all", "mlp_out_norm", "hidden_norm"):
            arrays[name] /= sequences * widths
        for name in ("attention_sink", "hidden_t0_over_early"):
            arrays[name] /= sequences
        return SinkReport.of(config, step, sequences, length, starts, ends, arrays)

    def _whole_sequence(self, local: Tensor) -> Tensor:
        """[M, B, T or its local share] -> [M, B, T] on every tensor-parallel rank."""
        if not self.layout.sequence_parallel:
            return local
        whole = local.new_zeros(*local.shape[:-1], self.layout.tensor.size, local.shape[-1])
        whole[..., self.layout.tensor.rank, :] = local
        return all_reduce(whole, self.layout.tensor).flatten(-2)


def _tokens_last(per_head: Tensor) -> Tensor:
    """[M, B, T, K] -> [K, T], summed over micro-batches and sequences in float64."""
    return per_head.double().sum(dim=(0, 1)).transpose(0, 1)
