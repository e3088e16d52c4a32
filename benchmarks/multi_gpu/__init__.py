"""What needs several GPUs of one host: parity, scaling, faults (docs/multi-gpu.md); on a CPU, tiny, over gloo."""
