"""megasink: pretrain Llama models while watching and controlling attention sinks."""

__version__ = "0.1.0"
