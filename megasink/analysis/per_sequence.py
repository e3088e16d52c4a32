"""The table's figures sequence by sequence, which one report over all of them does not keep."""

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor, nn

from megasink.model.taps import BlockTaps
from megasink.stats.measures import Tokens, first_over_early, gradient_sink_ratio
from megasink.stats.recorder import SinkRecorder


class PerSequenceRecorder:
    """Stands between the blocks and a SinkRecorder, and reads the same taps."""

    def __init__(self, recorder: SinkRecorder, blocks: list[nn.Module]):
        self.recorder = recorder
        self.figures: dict[int, list[dict[str, Tensor]]] = defaultdict(list)
        for block in blocks:
            block.recorder = self

    def open(self, layer_index: int, hidden_states: Tensor, first_token: Tensor | None = None) -> BlockTaps | None:
        """As SinkRecorder.open."""
        taps = self.recorder.open(layer_index, hidden_states, first_token)
        if taps is not None:
            leaves = (taps.attention_sink, taps.block_output, taps.mlp_output, taps.attention_norm_grad)
            keep = self.figures[layer_index]
            torch.autograd.graph.register_multi_grad_hook(leaves, lambda found: keep.append(_figures(*found)))
        return taps

    def collect(self) -> dict[str, np.ndarray]:
        """Every figure by sequence and layer, float64 [S, L]."""
        layers = [self.figures[layer] for layer in sorted(self.figures)]
        return {
            name: torch.stack([torch.cat([batch[name] for batch in layer]) for layer in layers], dim=1).cpu().numpy()
            for name in layers[0][0]
        }


def _figures(sink: Tensor, block_output: Tensor, mlp_output: Tensor, norm_grad: Tensor) -> dict[str, Tensor]:
    """One micro-batch of one block: each [B]. Arguments as BlockTaps has them: sums over queries, squares of norms."""
    batch, length = norm_grad.shape
    tokens = Tokens(batch, length, norm_grad.device)
    hidden, g2 = block_output.double().sqrt(), norm_grad.double().sqrt()
    return {
        "attention_sink": sink.double().mean(dim=1) / (length - 1),
        "hidden_t0": hidden[:, 0],
        "hidden_t0_over_early": first_over_early(hidden, tokens),
        "mlp_t0": mlp_output[:, 0].double().sqrt(),
        "gradient_sink_ratio": gradient_sink_ratio(g2, tokens),
        "gradient_sink_ratio_early": first_over_early(g2, tokens),
    }
