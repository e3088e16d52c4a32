"""Looks at what a report over all sequences does not keep: figures by sequence, sinks at any position, exact medians.

The unit is a sequence or, where packed documents are kept apart, a document of at least two tokens.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from megasink.analysis.exact import (
    ORDER_FIGURES,
    at_position,
    attention_received,
    gu_alphas,
    later_queries,
    order_statistics,
    over_others,
)
from megasink.analysis.subject import Subject, part_of
from megasink.model.taps import BlockTaps, on_gradients, widen
from megasink.stats.measures import Tokens, first_over_early, gradient_sink_ratio
from megasink.stats.recorder import SinkRecorder

AUTO = "auto"


@dataclass(frozen=True)
class Wanted:
    """Where to look for sinks, and from which attention on a key is one."""

    positions: tuple[int | str, ...] = (0,)
    """Positions in the document; AUTO: the key among its first half that gets most attention, mean over heads."""
    thresholds: tuple[float, ...] = (0.3,)


class Observer:
    """Stands between the blocks and a SinkRecorder, reads the same taps, and hooks what they do not show."""

    def __init__(self, subject: Subject, recorder: SinkRecorder, wanted: Wanted):
        self.subject = subject
        self.recorder = recorder
        self.wanted = wanted
        self.per_unit: dict[str, list[list[Tensor]]] = self._empty()
        self.per_sequence: dict[str, list[list[Tensor]]] = self._empty()
        self.sums: dict[str, list[Tensor | float]] = defaultdict(lambda: [0.0] * len(subject.blocks))
        self.units: list[Tensor] = []
        self.found: list[dict[str, Tensor]] = [{} for _ in subject.blocks]
        self.tokens: Tokens | None = None
        self.first_token: Tensor | None = None

    def _empty(self) -> dict[str, list[list[Tensor]]]:
        return defaultdict(lambda: [[] for _ in self.subject.blocks])

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, the blocks' taps and outputs are looked at."""
        handles = []
        for layer, block in enumerate(self.recorder.blocks):
            block.recorder = self
            mlp = part_of(self.subject, layer, "mlp")
            handles += [
                self.subject.blocks[layer].register_forward_hook(self._order_hook(layer, "hidden")),
                mlp.register_forward_hook(self._order_hook(layer, "mlp_out")),
                part_of(self.subject, layer, "value").register_forward_hook(_on_gradient(self._first_value_gradient)),
                part_of(self.subject, layer, "attention_norm").register_forward_hook(
                    _on_gradient(partial(self._value_shares, layer))
                ),
            ]
        yield
        for handle in handles:
            handle.remove()

    def next_batch(self, batch: int, length: int, device: torch.device, first_token: Tensor | None) -> None:
        """Say what the next forward pass is about; `first_token` int64 [B, T] where documents are kept apart."""
        self.first_token = first_token
        self.tokens = Tokens(batch, length, device, first_token)
        self.units.append(self.tokens.of_several(self.tokens.size))

    def open(self, layer_index: int, hidden_states: Tensor, first_token: Tensor | None = None) -> BlockTaps | None:
        """As SinkRecorder.open."""
        taps = self.recorder.open(layer_index, hidden_states, first_token)
        if taps is None:
            return None
        self.taps = taps
        if torch.is_grad_enabled():
            leaves = (taps.block_output, taps.mlp_output, taps.value, taps.attention_norm_grad)
            on_gradients(leaves, lambda found: self._look(layer_index, *found))
        return taps._replace(attention_observer=lambda *states: self._attention(layer_index, *states))

    def unit_figures(self) -> dict[str, np.ndarray]:
        """Every figure by unit and layer, float64 [S, L]; `tokens` [S] of each unit."""
        figures = {name: _stack(layers).T for name, layers in self.per_unit.items()}
        return figures | {"tokens": torch.cat(self.units).double().cpu().numpy()}

    def arrays(self) -> dict[str, np.ndarray]:
        """What goes into the report beside (and, for medians, in place of) the recorder's arrays."""
        arrays: dict[str, np.ndarray] = {}
        for name in ("hidden", "mlp_out"):
            order = {figure: _stack(self.per_sequence[f"{name}_{figure}"]) for figure in ORDER_FIGURES}
            arrays[f"{name}_abs_median"] = order["median"].mean(axis=1)
            with np.errstate(divide="ignore", invalid="ignore"):  # an output that is all zeros has no ratio
                arrays[f"{name}_top1_over_median"] = (order["top1"] / order["median"]).mean(axis=1)
            arrays[f"{name}_massive_count"] = order["massive_count"].sum(axis=1)
            arrays |= {f"{name}_by_sequence_{figure}": values for figure, values in order.items()}
        sums = {name: torch.stack(layers).cpu().numpy() for name, layers in self.sums.items()}
        arrays["attention_received"] = sums["received"] / np.maximum(sums["received_of"], 1)
        with np.errstate(invalid="ignore"):  # no gradient at any token 0, no document as long as Gu's 64 tokens: NaN
            if "shares" in sums:
                arrays["value_path_share_by_head"] = sums["shares"] / sums["shares_of"][:, None]
            arrays["gu_sink_by_threshold"] = sums["gu"] / sums["gu_of"][:, None, None, None]
        return arrays

    def _attention(self, layer: int, query, key, value_hat, lse, first_token) -> None:
        tokens = self.tokens
        received = attention_received(query, key, lse, tokens, first_token)
        by_key = received.double().mean(dim=1)  # [B, T]
        self._keep(layer, "attention_sink", at_position(by_key, tokens, torch.zeros_like(tokens.size)))
        behind = later_queries(tokens, len(query))
        self.sums["received"][layer] += tokens.bin_sums(by_key * (behind > 0))
        self.sums["received_of"][layer] += tokens.bin_sums((behind > 0).double())

        alphas = gu_alphas(query, key, tokens)
        above = torch.stack([(alphas > eps).double() for eps in self.wanted.thresholds], dim=2)  # [X, N, E, G]
        self.sums["gu"][layer] += above.sum(dim=0)
        self.sums["gu_of"][layer] += alphas.new_full((), len(alphas), dtype=torch.float64)

        for position in self.wanted.positions:
            if position == AUTO:
                seen_enough = behind >= (tokens.position + behind) // 2
                _, place = tokens.document_maxima(by_key.masked_fill(~seen_enough, -1.0))
            else:
                place = torch.full_like(tokens.size, position)
            self.found[layer][f"{position}"] = place
            self._keep(layer, f"position_{position}", place.double())
            self._keep(layer, f"attention_to_{position}", at_position(by_key, tokens, place))

    def _look(self, layer: int, block_output, mlp_output, value, norm_grad=None) -> None:
        """Squares of norms [B, T] (value [B, T, K]) of one micro-batch of one block, as the taps have them."""
        tokens = self.tokens
        hidden = block_output.double().sqrt()
        self._keep(layer, "hidden_t0", tokens.first(hidden))
        self._keep(layer, "hidden_t0_over_early", first_over_early(hidden, tokens))
        self._keep(layer, "mlp_t0", tokens.first(mlp_output).sqrt())
        values = value.double().sqrt().mean(dim=-1)
        for position, place in self.found[layer].items():
            self._keep(layer, f"hidden_over_others_{position}", over_others(hidden, tokens, place))
            self._keep(layer, f"value_over_others_{position}", over_others(values, tokens, place))
        if norm_grad is None:
            return
        g2 = norm_grad.double().sqrt()
        self._keep(layer, "gradient_sink_ratio", gradient_sink_ratio(g2, tokens))
        self._keep(layer, "gradient_sink_ratio_early", first_over_early(g2, tokens))
        for position, place in self.found[layer].items():
            self._keep(layer, f"gradient_over_others_{position}", over_others(g2, tokens, place))

    def _keep(self, layer: int, name: str, per_document: Tensor) -> None:
        self.per_unit[name][layer].append(self.tokens.of_several(per_document))

    def _order_hook(self, layer: int, name: str):
        def hook(_module, _args, output) -> None:
            states = output[0] if isinstance(output, tuple) else output
            for figure, values in zip(ORDER_FIGURES, order_statistics(states.detach()).unbind(dim=-1), strict=True):
                self.per_sequence[f"{name}_{figure}"][layer].append(values)
            if name == "hidden" and not torch.is_grad_enabled():
                self._look(layer, self.taps.block_output, self.taps.mlp_output, self.taps.value)

        return hook

    def _first_value_gradient(self, gradient: Tensor) -> None:
        """Keep dL/dv at the documents' first tokens, by key-value head: [X, K, D]."""
        first = gradient.flatten(0, 1)[self.tokens.start]
        self.value_gradient = first.unflatten(-1, (-1, self.subject.shape.kv_channels))

    def _value_shares(self, layer: int, g2: Tensor) -> None:
        """How much of g2 at the first tokens came through each head's value: W_h^T dL/dv_h . g2 / |g2|^2, [X, K]."""
        first = widen(g2.flatten(0, 1)[self.tokens.start])
        gradient = widen(self.value_gradient)
        weight = widen(part_of(self.subject, layer, "value").weight).unflatten(0, gradient.shape[1:])  # [K, D, H]
        products = torch.einsum("xkd,kdh,xh->xk", gradient, weight, first).double()
        square = first.square().sum(dim=-1).double()
        there = (square > 0) & (self.tokens.size > 1)
        # without indexing by a mask, for which a GPU's host has to wait
        self.sums["shares"][layer] += (products / square[:, None]).masked_fill(~there[:, None], 0.0).sum(dim=0)
        self.sums["shares_of"][layer] += there.sum().double()


def _on_gradient(look: Callable[[Tensor], None]):
    """A forward hook that has the gradient of the module's output looked at."""

    def hook(_module, _args, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(look)

    return hook


def _stack(layers: list[list[Tensor]]) -> np.ndarray:
    """[L][micro-batches] of tensors [n] -> float64 [L, n of all]."""
    return torch.stack([torch.cat(batches) for batches in layers]).double().cpu().numpy()
