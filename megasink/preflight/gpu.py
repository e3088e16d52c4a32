"""A rank's device: how fast it multiplies, and what NVML says about it meanwhile."""

import contextlib
import time

import torch

from megasink.preflight.bandwidth import synchronize

_SLOWED = {0x08: "hardware slowdown", 0x20: "software thermal slowdown", 0x40: "hardware thermal slowdown"}
_SLOWED[0x80] = "power brake"
"""Bits of NVML's reasons for lower clocks that a healthy device does not show (nvml.h, nvmlClocksEventReason...)."""


def compute_speed(device: torch.device) -> dict:
    """`tflops` of a square matrix product (bf16 on a GPU, fp32 on a CPU), and `gpu`, NVML's view in the midst of it."""
    on_gpu = device.type == "cuda"
    size, calls = (8192, 400) if on_gpu else (256, 20)
    # random numbers: equal ones draw less power, and clocks stay high
    operand = torch.randn(size, size, device=device, dtype=torch.bfloat16 if on_gpu else torch.float32)
    for _ in range(calls // 5):
        operand @ operand
    synchronize(device)
    began = time.perf_counter()
    for _ in range(calls):
        operand @ operand
    gpu = describe_gpu(device) if on_gpu else {}  # the products above are still running
    synchronize(device)
    seconds = time.perf_counter() - began
    return {"tflops": 2.0 * size**3 * calls / seconds / 1e12, "gpu": gpu}


def describe_gpu(device: torch.device) -> dict:
    """Of NVML: `same` (to be equal everywhere), `sm_mhz`, `power_w`, `celsius`, and `fault` where it reports one."""
    properties = torch.cuda.get_device_properties(device)
    same = {"GPU": properties.name, "GPU memory": f"{properties.total_memory / 2**30:.0f} GiB"}
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:
        return {"same": same | {"driver": f"unknown ({type(error).__name__}: pip install nvidia-ml-py)"}}
    handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}")
    found: dict = {"same": same}
    # a device need not support each question
    with contextlib.suppress(pynvml.NVMLError):
        same["driver"] = pynvml.nvmlSystemGetDriverVersion()
    with contextlib.suppress(pynvml.NVMLError):
        same["power limit"] = f"{pynvml.nvmlDeviceGetPowerManagementLimit(handle) / 1000:.0f} W"
    with contextlib.suppress(pynvml.NVMLError):
        same["largest SM clock"] = f"{pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)} MHz"
    with contextlib.suppress(pynvml.NVMLError):
        found["sm_mhz"] = float(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM))
    with contextlib.suppress(pynvml.NVMLError):
        found["power_w"] = pynvml.nvmlDeviceGetPowerUsage(handle) / 1000
    with contextlib.suppress(pynvml.NVMLError):
        found["celsius"] = float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))
    faults = []
    with contextlib.suppress(pynvml.NVMLError):
        reasons = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
        faults += [name for bit, name in _SLOWED.items() if reasons & bit]
    with contextlib.suppress(pynvml.NVMLError):
        kind = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
        errors = pynvml.nvmlDeviceGetTotalEccErrors(handle, kind, pynvml.NVML_VOLATILE_ECC)
        faults += [f"{errors} uncorrected memory errors"] if errors else []
    return found | ({"fault": ", ".join(faults)} if faults else {})
