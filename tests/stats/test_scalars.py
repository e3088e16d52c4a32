"""The line of scalars beside a report."""

import math

from megasink.stats.scalars import scalars, with_null
from tests.helpers.tiny import tiny_batch, tiny_config
from tests.stats.test_against_reference import model_with_theta, record


def test_scalars_of_both_levels_are_finite_and_light_is_part_of_full():
    config = tiny_config(v_scale="on")
    model = model_with_theta(config)
    light, full = (scalars(record(model, *tiny_batch(config), level)) for level in ("light", "full"))
    assert set(light) < set(full)
    assert all(math.isfinite(value) for value in full.values())
    assert light["hidden_t0_over_early_max"] >= light["hidden_t0_over_early_mean"]
    shares = [full[f"attention_g2_{path}_share_t0_mean"] for path in ("query", "key", "value")]
    assert abs(sum(shares) - 1.0) < 1e-9


def test_each_ratio_stands_beside_its_null():
    line = with_null({"a": 2.0, "only_in_full": 5.0}, {"a": 1.0})
    assert list(line) == ["a", "a_null", "only_in_full"]
    assert line["a_null"] == 1.0
