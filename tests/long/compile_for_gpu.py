"""Blocks compiled for an H200 where there is no GPU: kernels are made down to machine code, and none is run.

    bash tests/long/on_torch.sh 2.11.0 tests/long/compile_for_gpu.py

Needs a CUDA build of torch with Triton, as on_torch.sh installs it. A block is traced on a CPU with fake tensors, its
graphs are moved to a pretended GPU, and the compiler does what it does there. Left out: kernels of ours that are no
graph's (gradients of SwiGLU), the optimizer and the loss.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch._dynamo.device_interface as device_interface
import torch._inductor.runtime.triton_helpers as triton_helpers
import torch._inductor.runtime.triton_heuristics as triton_heuristics
import torch._subclasses.fake_tensor as fake_tensor
import triton
from torch._functorch.aot_autograd import aot_function
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor import config as inductor_config
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.virtualized import V
from torch.func import functional_call
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.utils._pytree import tree_leaves, tree_map
from triton.backends.compiler import GPUTarget

import megasink.model.attention as attention
from megasink.config import ModelConfig
from megasink.model.llama import Llama, blocks_of
from megasink.parallel.layers import ParallelLinear
from megasink.parallel.layout import ParallelLayout
from megasink.parallel.main_gradient import MainGradient
from megasink.stats.recorder import SinkRecorder

GPU = torch.device("cuda", 0)
H200 = SimpleNamespace(
    name="NVIDIA H200",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=141 << 30,
    max_threads_per_multi_processor=2048,
    regs_per_multiprocessor=65536,
    warp_size=32,
    shared_memory_per_block=48 << 10,
    shared_memory_per_block_optin=227 << 10,
    L2_cache_size=60 << 20,
)


@pytest.fixture(autouse=True)
def pretended_gpu(monkeypatch):
    """What the compiler asks torch and Triton about the device."""
    answers = dict(is_available=True, device_count=1, current_device=0, get_device_capability=(9, 0))
    answers |= dict(get_device_properties=H200, get_device_name=H200.name, synchronize=None)
    answers |= dict(_lazy_init=None, _exchange_device=0, _maybe_exchange_device=0)
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch.cuda.random, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda *_: torch.zeros(16, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *_: None)
    interface = dict(answers, get_compute_capability=90, get_raw_stream=0, exchange_device=0, maybe_exchange_device=0)
    for name in set(interface) & set(dir(device_interface.CudaInterface)):
        answer = interface[name]
        monkeypatch.setattr(device_interface.CudaInterface, name, staticmethod(lambda *_, answer=answer: answer))
    worker = device_interface.CudaInterface.Worker
    monkeypatch.setattr(worker, "get_device_properties", staticmethod(lambda *_: H200))
    monkeypatch.setattr(worker, "current_device", staticmethod(lambda: 0))
    driver = SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32), get_current_device=lambda: 0)
    triton.runtime.driver.set_active(driver)
    monkeypatch.setattr(triton_helpers, "set_driver_to_gpu", lambda: None)
    monkeypatch.setattr(triton_heuristics.CachingAutotuner, "_make_launchers", lambda self: None)  # would load them
    monkeypatch.setattr(fake_tensor, "init_gpu_context", lambda device: None)
    monkeypatch.setattr(attention, "causal_attention", gpu_attention)


def gpu_attention(query, key, value):
    """The operator that attention.causal_attention takes on a GPU, whatever the device of fake tensors."""
    cudnn = torch.ops.aten._scaled_dot_product_cudnn_attention
    context, log_sum_exp = cudnn(query, key, value, None, True, 0.0, True)[:2]
    return context, log_sum_exp.reshape(query.shape[:-1])


def compile_there(graph: torch.fx.GraphModule, inputs: list, is_backward: bool) -> None:
    """`graph`, traced on a CPU, through the compiler for the pretended GPU."""
    graph = copy.deepcopy(graph)
    for node in graph.graph.nodes:
        node.args, node.kwargs = tree_map(lambda a: GPU if isinstance(a, torch.device) else a, (node.args, node.kwargs))
    graph.recompile()
    mode = fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)
    with torch.no_grad(), inductor_config.patch(compile_threads=1, force_disable_caches=True):
        with mode:
            there = tree_map(_there, inputs)
        FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*there)
        with V.set_fake_mode(mode), torch._guards.tracing(torch._guards.TracingContext(mode)):
            compile_fx_inner(graph, there, is_backward=is_backward)


def _there(tensor: torch.Tensor | None) -> torch.Tensor | None:
    if tensor is None:
        return None
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=GPU)


def compile_block(config: ModelConfig, sequences: int, level: str | None, gradients: bool) -> list[str]:
    """Compile what torch.compile makes of a block; returns the graphs: forward, backward."""
    block = blocks_of(Llama(config, seed=1).bfloat16())[0]
    recorder = SinkRecorder(config, ParallelLayout(), [block])
    compiled = []

    def compiler(name: str):
        def compile_graph(graph, inputs):
            compile_there(graph, inputs, is_backward=name == "backward")
            compiled.append(name)
            return graph

        return compile_graph

    with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True), torch.set_grad_enabled(gradients):
        parameters = {name: torch.empty_like(each, requires_grad=True) for name, each in block.named_parameters()}
        layers = [layer for layer in block.modules() if isinstance(layer, ParallelLinear)]
        sums = [torch.empty_like(layer.weight, dtype=torch.float32, requires_grad=False) for layer in layers]
        states = torch.empty(sequences, config.seq_length, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
        tables = [torch.empty(config.seq_length, config.hidden_size // config.num_attention_heads) for _ in range(2)]
        rows = 3 * config.hidden_size, 2 * config.ffn_hidden_size
        joined = tuple(torch.empty(count, config.hidden_size, dtype=torch.bfloat16) for count in rows)
        taps = None
        if level is not None:
            recorder.start(level)
            taps = recorder._leaves(states)  # without the hooks that fold gradients

        def run(parameters, sums, states, tables, taps, joined):
            for layer, total in zip(layers, sums, strict=True):
                layer.main_gradient = MainGradient(total, empty=total)  # both inputs of the same operator
            module = _Transform(block)
            named = {f"block.{name}": parameter for name, parameter in parameters.items()}
            return functional_call(module, named, (states, *tables, None, taps, joined))

        options = dict(decompositions=select_decomp_table(), fw_compiler=compiler("forward"))
        options |= dict(bw_compiler=compiler("backward"), partition_fn=partition)
        output = aot_function(run, **options)(parameters, sums, states, tables, taps, joined)
        if gradients:
            sum(each.float().sum() for each in tree_leaves(output)).backward()
    return compiled


class _Transform(torch.nn.Module):
    def __init__(self, block: torch.nn.Module):
        super().__init__()
        self.block = block

    def forward(self, *inputs):
        return self.block.transform(*inputs)


def partition(graph, inputs, **options):
    return min_cut_rematerialization_partition(graph, inputs, compiler="inductor", **options)


@pytest.mark.parametrize(("hidden_size", "heads", "length", "sequences"), [(512, 4, 64, 512), (2048, 16, 2048, 4)])
@pytest.mark.parametrize("level", [None, "light", "full"])
@pytest.mark.parametrize("v_scale", ["off", "on", "backward-only"])
def test_a_block_compiles_for_a_gpu(v_scale, level, hidden_size, heads, length, sequences):
    """As many sequences as columns: there full statistics did not compile with torch 2.11 (2026-11-28)."""
    shape = dict(num_layers=1, hidden_size=hidden_size, ffn_hidden_size=4 * hidden_size, num_attention_heads=heads)
    config = ModelConfig(**shape, seq_length=length, vocab_size=256, v_scale=v_scale)
    assert compile_block(config, sequences, level, gradients=True) == ["forward", "backward"]
    if level is None:
        assert compile_block(config, sequences, level, gradients=False) == ["forward"]
