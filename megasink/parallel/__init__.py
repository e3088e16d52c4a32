"""Tensor, sequence, pipeline and data parallelism: who the ranks are, and the layers split over them."""
