"""Post-hoc sink analysis: what is measured on checkpoints, the figures drawn from it, and the HTML report."""
