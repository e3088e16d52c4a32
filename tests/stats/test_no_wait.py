"""Recording and reducing statistics never makes the host wait for the device.

On the meta device no value can be read: what a GPU's host would wait for is an error there. A tensor of the host that
is copied to the device (which waits as well) shows as an operator that is given it. So does a number assigned to
indexed places: on a GPU it is made a tensor of the host first.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megasink.config import ModelConfig
from megasink.model.llama import Llama, blocks_of
from megasink.parallel.layout import ParallelLayout
from megasink.stats.recorder import SinkRecorder

CONFIG = ModelConfig(
    num_layers=2, hidden_size=32, ffn_hidden_size=48, num_attention_heads=4, seq_length=32, vocab_size=64, v_scale="on"
)


class HostTensors(TorchDispatchMode):
    """Remembers operators that are given a tensor or a number of the host to copy."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        devices = set()
        torch.utils._pytree.tree_map_only(torch.Tensor, lambda tensor: devices.add(tensor.device.type), (args, kwargs))
        if "cpu" in devices or (function is torch.ops.aten.index_put_.default and args[2].dim() == 0):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("level", ["light", "full"])
def test_no_value_is_read_and_none_comes_from_the_host(level):
    with torch.device("meta"):
        model = Llama(CONFIG)
        tokens = torch.zeros(2, CONFIG.seq_length, dtype=torch.int64)
    recorder = SinkRecorder(CONFIG, ParallelLayout(), blocks_of(model))
    model(tokens).sum().backward()  # makes the tables of RoPE
    step(model, recorder, tokens, level)  # and the places of tokens, once
    with HostTensors() as host:
        step(model, recorder, tokens, level)
    assert host.found == []


def step(model: Llama, recorder: SinkRecorder, tokens: torch.Tensor, level: str) -> None:
    """Two micro-batches, and a report that nobody reads."""
    recorder.start(level)
    for _ in range(2):
        model(tokens).sum().backward()
    recorder.report_late(step=0)
