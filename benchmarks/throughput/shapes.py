"""The models that are timed: every case builds exactly these."""

from dataclasses import asdict, dataclass

from megasink.errors import UserError


@dataclass(frozen=True)
class Shape:
    """An untied Llama without grouped heads."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    head_dim: int
    vocab_size: int
    seq_length: int

    @property
    def block_matrices(self) -> list[tuple[int, int]]:
        """(rows out, columns in) of one block's products, q-k-v and gate-up each as one."""
        width = self.num_attention_heads * self.head_dim
        return [
            (3 * width, self.hidden_size),
            (self.hidden_size, width),
            (2 * self.ffn_hidden_size, self.hidden_size),
            (self.hidden_size, self.ffn_hidden_size),
        ]

    @property
    def num_parameters(self) -> int:
        block = sum(rows * columns for rows, columns in self.block_matrices) + 2 * self.hidden_size
        return self.num_layers * block + 2 * self.vocab_size * self.hidden_size + self.hidden_size

    @property
    def flops_per_token(self) -> float:
        """6 per weight that multiplies, and 6 L N D T of attention (the causal half)."""
        weights = self.num_layers * sum(rows * columns for rows, columns in self.block_matrices)
        weights += self.vocab_size * self.hidden_size
        width = self.num_attention_heads * self.head_dim
        return 6.0 * weights + 6.0 * self.num_layers * width * self.seq_length

    def flags(self) -> list[str]:
        """megasink's flags for this model."""
        return [word for name, value in asdict(self).items() for word in (f"--{name.replace('_', '-')}", str(value))]


SHAPES = {
    "tiny": Shape(2, 64, 96, 4, 16, 256, 32),
    "0.1b": Shape(16, 512, 1408, 8, 64, 32000, 1024),
    "0.3b": Shape(16, 1024, 2816, 16, 64, 32000, 2048),
    "1b": Shape(16, 2048, 8192, 16, 128, 32000, 2048),
    "3b": Shape(26, 3072, 8192, 24, 128, 32000, 2048),
    "7b-cut": Shape(8, 4096, 11008, 32, 128, 32000, 2048),  # Llama 7B's width; 8 of its 32 layers fit in 80 GB
}


def shape_named(name: str) -> Shape:
    """Raises UserError for a name that is none of SHAPES."""
    if name not in SHAPES:
        raise UserError(f"--shape {name}: no such shape; choose one of {', '.join(SHAPES)}")
    return SHAPES[name]
