"""ZeRO-3 trains as ZeRO-1 does where weights really are split and given up after use, as in models of real size.

With its usual settings every weight of a tiny model stays whole on all ranks.
"""

import json

import numpy as np

from tests.helpers.jobs import ROOT, losses, train, write_tokens


def test_split_weights_give_the_same_losses(tmp_path):
    settings = json.loads((ROOT / "ds_configs" / "zero3.json").read_text())
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    split = tmp_path / "split.json"
    split.write_text(json.dumps(settings))
    flags = ["--data-path", write_tokens(tmp_path / "tokens"), "--train-iters", 3, "--global-batch-size", 8]
    train(*flags, "--save", tmp_path / "zero1", ranks=2)
    train(*flags, "--zero-stage", 3, "--deepspeed-config", split, "--save", tmp_path / "zero3", ranks=2)
    np.testing.assert_allclose(losses(tmp_path / "zero3"), losses(tmp_path / "zero1"), rtol=1e-5)
