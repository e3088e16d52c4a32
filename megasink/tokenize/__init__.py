"""Text to tokens: tokenizers and the streaming writer of token files. No torch."""

from megasink.tokenize.tokenizers import Tokenizer, load_tokenizer

__all__ = ["Tokenizer", "load_tokenizer"]
