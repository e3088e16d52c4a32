"""Growth is said once when it begins and again when it doubles, relative to what untrained weights show."""

import json
import math

from megasink.stats.alerts import GrowthWatch

NULL = {"hidden_t0_over_early_max": 1.3, "hidden_top1_over_median_max": 7.0, "hidden_massive_count": 0.0}


def test_untrained_figures_are_silent():
    assert GrowthWatch().check(NULL, NULL) == []


def test_growth_is_said_once_and_again_when_doubled():
    watch = GrowthWatch()
    said = [len(watch.check({"hidden_t0_over_early_max": value}, NULL)) for value in (3.8, 4.0, 5.0, 7.9, 8.0, 16.0)]
    assert said == [0, 1, 0, 0, 1, 1]


def test_what_was_said_is_known_to_a_resumed_run_as_json():
    for value in (4.0, math.inf):
        watch = GrowthWatch()
        assert watch.check({"hidden_t0_over_early_max": value}, NULL)
        stored = json.loads(json.dumps(watch.warns_at, allow_nan=False))
        assert not GrowthWatch(stored).check({"hidden_t0_over_early_max": 7.9}, NULL)


def test_the_first_massive_activation_is_said():
    assert len(GrowthWatch().check(NULL | {"hidden_massive_count": 1.0}, NULL)) == 1


def test_nothing_is_said_without_a_null():
    assert GrowthWatch().check({"hidden_t0_over_early_max": 100.0}, {}) == []


def test_each_growth_names_its_figures():
    figures = {"hidden_t0_over_early_max": 13.0, "hidden_top1_over_median_max": 90.0, "hidden_massive_count": 4.0}
    warnings = GrowthWatch().check(figures, NULL)
    assert len(warnings) == 3
    assert "13" in warnings[0] and "1.3" in warnings[0]
