"""The share of a device's peak that a run reaches (MFU)."""

import torch

from megasink.config import ModelConfig
from megasink.model.flops import flops_per_token

# dense bf16 tensor-core peaks of the data sheets, FLOP/s
PEAK_FLOPS = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12, "A800": 312e12, "H800": 989.4e12, "B200": 2250e12}


def model_flops_utilisation(tokens_per_second_per_device: float, config: ModelConfig) -> float | None:
    """None where the device's peak is not known (a CPU)."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    peak = next((flops for key, flops in PEAK_FLOPS.items() if key in name), None)
    return None if peak is None else tokens_per_second_per_device * flops_per_token(config) / peak
