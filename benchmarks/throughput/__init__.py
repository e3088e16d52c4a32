"""One file per case of train_throughput.py, and what they share."""
