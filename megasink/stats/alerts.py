"""Says when a run starts to grow massive activations."""

import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Growth:
    """A scalar that warns at `times_null` times what untrained weights show, or above `least` where that is more."""

    scalar: str
    means: str
    times_null: float
    least: float = 0.0


GROWTHS = (
    Growth("hidden_t0_over_early_max", "|x_out| at token 0 over positions 1..15, largest layer", times_null=3.0),
    Growth("hidden_top1_over_median_max", "largest over median |activation| of x_out, largest layer", times_null=10.0),
    Growth("hidden_massive_count", "activations above 100 and 1000 x their sequence's median", 1.0, least=1.0),
)
"""Warned about when reached, then at each further doubling."""


class GrowthWatch:
    """Compares each report's scalars with the null's.

    `warns_at`: the value at which each scalar that was warned about is warned about next; a resumed run gives what the
    run before had there.
    """

    def __init__(self, warns_at: dict[str, float] | None = None):
        self.warns_at = dict(warns_at or {})

    def check(self, figures: dict[str, float], null: dict[str, float]) -> list[str]:
        """A line for each growth that has reached its threshold, or doubled since the last warning.

        Args:
            figures, null: as `scalars` returns them; what a light report lacks is passed over, and so is what the null
                lacks.
        """
        warnings = []
        for growth in GROWTHS:
            if growth.scalar not in figures or growth.scalar not in null:
                continue
            value, untrained = figures[growth.scalar], null[growth.scalar]
            threshold = self.warns_at.get(growth.scalar, max(growth.least, growth.times_null * untrained))
            if value >= threshold:
                warnings.append(f"{growth.means}: {value:.4g}, untrained {untrained:.4g}")
                # finite: it is stored as JSON
                self.warns_at[growth.scalar] = min(2.0 * value, sys.float_info.max)
        return warnings
