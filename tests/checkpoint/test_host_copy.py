"""What is caught of DeepSpeed's state for a checkpoint is data, and no longer the original."""

import pickle
import pickletools

import torch
from deepspeed.runtime.zero.config import ZeroStageEnum

from megasink.checkpoint.host_copy import to_host


def test_an_enumeration_is_stored_as_its_value():
    """Python 3.11.2 pickles a member as a call of getattr, which a load of data alone refuses."""
    stored = to_host({"zero_stage": ZeroStageEnum.gradients, "nested": [(ZeroStageEnum.weights,)]})
    assert stored == {"zero_stage": 2, "nested": [(3,)]}
    assert not [code for code, _, _ in pickletools.genops(pickle.dumps(stored)) if "GLOBAL" in code.name]


def test_a_later_change_of_the_original_is_not_seen():
    original = {"weights": [torch.zeros(3)]}
    stored = to_host(original)
    original["weights"][0].fill_(1.0)
    assert torch.equal(stored["weights"][0], torch.zeros(3))
