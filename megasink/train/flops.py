"""The share of a device's peak that a run reaches (MFU)."""

import torch

from megasink.config import ModelConfig
from megasink.model.flops import flops_per_token
from megasink.plan.gpus import GPUS

# dense bf16 tensor-core peaks, FLOP/s; the H200, H800 and A800 are their relatives with other memory or links
PEAK_FLOPS = {
    **dict.fromkeys(("H100", "H200", "H800"), GPUS["h100"].peak_flops),
    **dict.fromkeys(("A100", "A800"), GPUS["a100"].peak_flops),
    "B200": 2250e12,
}


def model_flops_utilisation(tokens_per_second_per_device: float, config: ModelConfig) -> float | None:
    """None where the device's peak is not known (a CPU)."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    peak = next((flops for key, flops in PEAK_FLOPS.items() if key in name), None)
    return None if peak is None else tokens_per_second_per_device * flops_per_token(config) / peak
