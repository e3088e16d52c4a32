"""The Llama, written once: a list of layers that runs whole in one process or cut over ranks."""
