"""DeepSpeed opens its files with pickle, which runs whatever code a file asks for. Here it may make data only."""

import contextlib
import os
from collections.abc import Iterator

import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.utils.tensor_fragment import fragment_address

# what DeepSpeed stores beside tensors and plain containers
_DATA_CLASSES = [DynamicLossScaler, LossScaler, fragment_address]
_VARIABLE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


@contextlib.contextmanager
def only_data() -> Iterator[None]:
    """Inside, every torch.load refuses a pickle that holds more than data, also one told `weights_only=False`."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = "1"
    try:
        with torch.serialization.safe_globals(_DATA_CLASSES):
            yield
    finally:
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before
