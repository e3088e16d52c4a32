"""Gathers what the taps of each block report during a step, and makes one report of the whole batch from it."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megasink.config import ModelConfig
from megasink.model.attention_patterns import HEAD_PATTERNS
from megasink.model.taps import BlockTaps
from megasink.parallel.collectives import all_reduce
from megasink.parallel.layout import ParallelLayout
from megasink.stats.full import add_full
from megasink.stats.light import add_light
from megasink.stats.measures import Tokens, input_norm_edges, kurtosis, position_bins, ratios_of_means
from megasink.stats.reduce import Sums
from megasink.stats.report import SinkReport

Level = Literal["light", "full", "forward"]
"""`forward`: what of `full` a forward pass without gradients shows."""

_OF_GRADIENTS = ("_grad_", "gradient_", "_g1_", "_g2_", "_g3_", "_bloat", "_change", "_compress")
"""Parts of the names of figures that need a backward pass."""

# entries [B, T] that hold this rank's share of the sequence under sequence parallelism
_LOCAL_LIGHT = ("attention_norm_grad", "mlp_output", "block_output")
_LOCAL_FULL = (
    "block_input_grad",
    "middle_grad",
    "block_output_grad",
    "attention_norm_input_grad",
    "mlp_norm_grad",
    "mlp_norm_input_grad",
    "block_input",
    "middle",
)


class SinkRecorder:
    """Statistics of one batch on one rank: `start()`, any number of forward and backward passes, `report()`.

    Outside start/report the blocks run without taps and nothing is recorded.
    """

    def __init__(self, config: ModelConfig, layout: ParallelLayout, blocks: Iterable[nn.Module]):
        """`blocks`: those of this rank, in order; each has `layer_index` and asks its attribute `recorder` for taps."""
        self.config = config
        self.layout = layout
        self.blocks = list(blocks)
        self.level: Level | None = None
        self.sums = self._no_sums()
        self.plain_tokens: dict[tuple, Tokens] = {}
        self.pending: dict[int, list[tuple[dict[str, Tensor], Tensor | None]]] = defaultdict(list)
        for block in self.blocks:
            block.recorder = self

    def start(self, level: Level = "light") -> None:
        """Record every forward pass from here on, those with gradients unless `level` is `forward`."""
        self.pending.clear()
        self.level = level
        self.sums = self._no_sums()

    def open(self, layer_index: int, hidden_states: Tensor, first_token: Tensor | None = None) -> BlockTaps | None:
        """Fresh leaves for one forward pass of one block.

        Args:
            hidden_states: [B, T (or its local share), H], the block's input.
            first_token: int64 [B, T] of the whole sequences, index of the first token of each token's document, where
                packed documents do not see each other.
        """
        if self.level is None or torch.is_grad_enabled() == (self.level == "forward"):
            return None
        if layer_index == self.blocks[0].layer_index:
            self._fold_complete()  # the micro-batches before this one, while a device has their work queued
        taps = self._leaves(hidden_states)
        leaves = {name: leaf for name, leaf in taps._asdict().items() if leaf is not None}
        if self.level == "forward":
            leaves = {name: leaf.detach().fill_(torch.nan) for name, leaf in leaves.items()}
        self.pending[layer_index].append((leaves, first_token))
        return taps

    def record_apart(self, run: Callable[[], Tensor], level: Level | None) -> tuple[Tensor, Sums]:
        """What `run` returns, and the figures of `level` of the micro-batch that it takes forward and backward. They
        are no part of what is being recorded, unless `self.sums.merge` is given them."""
        self._fold_complete()
        present = self.level, self.sums
        self.level, self.sums = level, self._no_sums()
        result = run()
        self._fold_complete()
        apart = self.sums
        self.level, self.sums = present
        return result, apart

    def report(self, step: int, gradient_scale: float = 1.0) -> SinkReport:
        """As `report_late`, at once."""
        return self.report_late(step, gradient_scale)()

    def report_late(self, step: int, gradient_scale: float = 1.0) -> Callable[[], SinkReport]:
        """Reduce over all ranks and stop recording. Every rank must call this; any rank gets the whole report from what
        it returns, which waits for the device: called a step later it keeps no device waiting.

        Args:
            step: number of optimizer steps the weights had seen.
            gradient_scale: what recorded gradients are multiplied with to be those of the whole batch's loss.
        """
        self._fold_complete()
        self.pending.clear()  # passes without a backward pass
        level, self.level = self.level, None
        length = self.sums.length
        figures = self.sums.reduce(gradient_scale)

        def report() -> SinkReport:
            arrays = _finish(figures(), self.config, full=level != "light")
            if level == "forward":
                arrays = {name: a for name, a in arrays.items() if not any(part in name for part in _OF_GRADIENTS)}
            return SinkReport.of(self.config, step, level, length, *position_bins(length), arrays)

        return report

    def _no_sums(self) -> Sums:
        first = self.blocks[0].layer_index if self.blocks else 0
        return Sums(self.config, self.layout, slice(first, first + len(self.blocks)))

    def _leaves(self, hidden_states: Tensor) -> BlockTaps:
        batch, local_length = hidden_states.shape[:2]
        length = local_length * (self.layout.tensor.size if self.layout.sequence_parallel else 1)
        split = self.sums.split
        wide = torch.promote_types(hidden_states.dtype, torch.float32)

        def leaf(*shape: int, dtype: torch.dtype = wide) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=hidden_states.device, requires_grad=True)

        def locals_(names: tuple[str, ...]) -> dict[str, Tensor]:
            return {name: leaf(batch, local_length) for name in names}

        taps = BlockTaps(
            value_grad=leaf(batch, length, split.key_value_heads),
            value=leaf(batch, length, split.key_value_heads),
            theta=None if self.config.v_scale == "off" else leaf(split.key_value_heads),
            attention_sink=leaf(batch, split.heads),
            attention_lse_max=leaf(batch, split.heads),
            **locals_(_LOCAL_LIGHT),
        )
        if self.level == "light":
            return taps
        return taps._replace(
            query_grad=leaf(batch, length, split.heads),
            key_grad=leaf(batch, length, split.key_value_heads),
            value_hat_grad=leaf(batch, length, split.key_value_heads),
            value_hat=leaf(batch, length, split.key_value_heads),
            attention_paths=leaf(batch, local_length, 6),
            attention_entropy=leaf(batch, length, split.heads),
            attention_heads=leaf(batch, split.heads, HEAD_PATTERNS),
            block_output_moments=leaf(batch, 4, dtype=torch.float64),
            mlp_output_moments=leaf(batch, 4, dtype=torch.float64),
            block_output_order=leaf(batch, 3),
            mlp_output_order=leaf(batch, 3),
            **locals_(_LOCAL_FULL),
        )

    def _fold_complete(self) -> None:
        """Add the micro-batches that are through every block here to the sums, and forget their taps."""
        while self.blocks and None not in (
            places := [self._first_complete(block.layer_index) for block in self.blocks]
        ):
            entries = [self.pending[block.layer_index].pop(at) for block, at in zip(self.blocks, places, strict=True)]
            first_token = entries[0][1]
            figures = [{name: self._figure(leaf) for name, leaf in leaves.items()} for leaves, _ in entries]
            taps = {name: torch.stack([each[name] for each in figures]) for name in figures[0]}
            taps = BlockTaps(**self._whole_sequence(taps))
            self.sums.batch, self.sums.length = taps.value.shape[1:3]
            tokens = self._tokens(taps.value.device, first_token)
            add_light(self.sums, taps, tokens, self.layout)
            if self.level != "light":
                add_full(self.sums, taps, tokens, self.layout)

    def _first_complete(self, layer_index: int) -> int | None:
        """The place of the block's oldest pass whose taps are all there; the oldest may have no backward pass."""
        for at, (leaves, _) in enumerate(self.pending[layer_index]):
            if all(self._figure(leaf) is not None for leaf in leaves.values()):
                return at
        return None

    def _figure(self, leaf: Tensor) -> Tensor | None:
        """What a tap has received, None until its backward pass."""
        return leaf if self.level == "forward" else leaf.grad

    def _tokens(self, device: torch.device, first_token: Tensor | None) -> Tokens:
        """Without documents every micro-batch has its tokens at the same places."""
        size = self.sums.batch, self.sums.length
        if first_token is not None:
            return Tokens(*size, device, first_token)
        place = (*size, device)
        if place not in self.plain_tokens:
            self.plain_tokens = {place: Tokens(*place)}
        return self.plain_tokens[place]

    def _whole_sequence(self, taps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Put together what the ranks of a sequence-parallel group hold parts of: [L, B, T local] -> [L, B, T]."""
        axis = self.layout.tensor
        if not self.layout.sequence_parallel:
            return taps
        local = {name: taps[name].unsqueeze(-1) for name in (*_LOCAL_LIGHT, *_LOCAL_FULL) if name in taps}
        if "attention_paths" in taps:
            local["attention_paths"] = taps["attention_paths"]
        together = torch.cat(list(local.values()), dim=-1)
        layers, batch, length, figures = together.shape
        whole = together.new_zeros(layers, batch, axis.size, length, figures)
        whole[:, :, axis.rank] = together
        whole = all_reduce(whole, axis).flatten(2, 3)
        parts = whole.split([part.shape[-1] for part in local.values()], dim=-1)
        taps = taps | {name: part.squeeze(-1) for name, part in zip(local, parts, strict=True)}
        for name in ("block_output_order", "mlp_output_order"):
            if name in taps:
                largest = all_reduce(taps[name][..., :1].contiguous(), axis, dist.ReduceOp.MAX)
                taps[name] = torch.cat((largest, taps[name][..., 1:]), dim=-1)
        return taps


def _finish(arrays: dict[str, Tensor], config: ModelConfig, full: bool) -> dict[str, Tensor]:
    """Figures made from others. Names with an underscore have served their purpose."""
    arrays["position_count"] = arrays["_tokens"][0]
    arrays |= ratios_of_means(arrays)
    if "theta" in arrays:
        initial_c = config.hidden_size * config.kv_channels * config.init_method_std**2
        arrays["v_scale_c"] = initial_c * arrays["theta"].exp()
    if full:
        elements = arrays["position_count"].sum() * config.hidden_size
        for name in ("hidden", "mlp_out"):
            central, raw = kurtosis(arrays[f"_{name}_moments"], elements)
            arrays |= {f"{name}_kurtosis": central, f"{name}_kurtosis_uncentred": raw}
        arrays["input_norm_edge"] = input_norm_edges()
    return {name: array for name, array in arrays.items() if not name.startswith("_")}
