"""Tokens on disk and samples for training: numpy only, no torch."""

from megasink.data.build import build_dataset
from megasink.data.dataset import SampleSource, TokenDataset
from megasink.data.indexed import IndexedDataset, IndexedDatasetWriter
from megasink.data.manifest import Manifest, read_manifest
from megasink.data.sampler import global_batch

__all__ = [
    "IndexedDataset",
    "IndexedDatasetWriter",
    "Manifest",
    "SampleSource",
    "TokenDataset",
    "build_dataset",
    "global_batch",
    "read_manifest",
]
