"""Kernels of a profiler trace land in the right category."""

import json

import pytest

from megasink.train.trace import (
    DATA_RANGE,
    OPTIMIZER_RANGE,
    Kernel,
    Trace,
    busy_time,
    category_of,
    read_trace,
    summarise,
)


@pytest.mark.parametrize(
    ("kernel", "category"),
    [
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_NNT", "matmul"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16", "attention"),
        ("triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_3", "norm"),
        ("triton_poi_fused__to_copy_add_cat_mul_neg_1", "rope"),
        ("triton_poi_fused_mul_silu_silu_backward_2", "swiglu"),
        ("_rotary_v_scale_gradient_kernel", "rope, v-scale"),
        ("_residual_rms_norm_gradient_kernel", "norm"),
        ("triton_poi_fused___lshift_____rshift____scaled_mm__to_copy_bitwise_and_clamp_mul_view_4", "fp8 casts"),
        ("triton_red_fused__log_softmax_nll_loss_forward_0", "cross entropy"),
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "communication"),
        ("gloo:all_reduce", "communication"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("triton_poi_fused__to_copy_add_7", "other"),
    ],
)
def test_categories_by_name(kernel, category):
    assert category_of(kernel) == category


def test_optimizer_range_outranks_the_name_but_for_communication():
    assert category_of("ncclDevKernel_AllGather_RING_LL", (OPTIMIZER_RANGE, "aten::copy_")) == "communication"
    assert category_of("triton_poi_fused_mul_pow_rsqrt_0", (OPTIMIZER_RANGE, "aten::mul")) == "optimizer"


def event(category: str, name: str, start: float, duration: float, thread: int, **arguments) -> dict:
    times = {"ts": start, "dur": duration, "tid": thread}
    return {"ph": "X", "cat": category, "name": name, "args": arguments} | times


def test_without_a_gpu_operators_count_without_what_they_contain(tmp_path):
    events = [
        event("cpu_op", "aten::scaled_dot_product_attention", 0, 20, 1),
        event("cpu_op", "aten::_scaled_dot_product_flash_attention_for_cpu", 5, 10, 1),
        event("cpu_op", "aten::empty", 6, 1, 1),
        event("cpu_op", "aten::mm", 21, 7, 1),
    ]
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": events}))
    kernels = read_trace(tmp_path / "trace.json").kernels
    assert [(kernel.category, kernel.duration) for kernel in kernels] == [
        ("attention", 10), ("attention", 9), ("attention", 1), ("matmul", 7),
    ]  # fmt: skip


def test_kernels_take_the_ranges_of_their_launch(tmp_path):
    events = [
        event("user_annotation", OPTIMIZER_RANGE, 0, 10, 1),
        event("cpu_op", "aten::mul", 1, 2, 1),
        event("user_annotation", DATA_RANGE, 20, 6, 1),
        event("cuda_runtime", "cudaLaunchKernel", 2, 1, 1, correlation=5),
        event("cuda_runtime", "cudaLaunchKernel", 12, 1, 1, correlation=6),
        event("cuda_runtime", "cudaStreamSynchronize", 13, 1, 1),
        event("kernel", "elementwise", 40, 4, 7, correlation=6),
        event("kernel", "elementwise", 30, 3, 7, correlation=5),
    ]
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": events}))
    trace = read_trace(tmp_path / "trace.json")
    assert [(kernel.category, kernel.duration) for kernel in trace.kernels] == [("optimizer", 3), ("other", 4)]
    assert trace.host_waits == {"cudaStreamSynchronize": 1} and trace.data_wait == 6


def test_sums_are_per_step():
    kernels = [Kernel("a", "matmul", 0, 1000), Kernel("a", "matmul", 2000, 3000), Kernel("b", "norm", 2500, 500)]
    found = summarise(Trace(kernels, {"wait": 4}, data_wait=600), steps=2, step_seconds=0.005)
    assert found["categories"] == {"matmul": {"ms": 2.0, "kernels": 1.0}, "norm": {"ms": 0.25, "kernels": 0.5}}
    assert (found["busy_ms"], found["step_ms"], found["data_wait_ms"]) == (2.0, 5.0, 0.3)
    assert found["host_waits"] == {"wait": 2.0} and found["slowest"][0]["name"] == "a"


def test_busy_time_counts_overlap_once():
    kernels = [Kernel("a", "other", 0, 10), Kernel("b", "other", 4, 3), Kernel("c", "other", 20, 5)]
    assert busy_time(kernels) == 15
