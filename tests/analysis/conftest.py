"""A display is never needed."""

import matplotlib

matplotlib.use("Agg")
