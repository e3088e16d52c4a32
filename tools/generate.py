"""Prompt any checkpoint.

python tools/generate.py --checkpoint runs/first --prompt "My fellow citizens"
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from megasink.config.cli import parse_cli
from megasink.errors import UserError, run_cli


@dataclass
class GenerateRequest:
    """Continue a prompt with a checkpoint's model."""

    checkpoint: str
    """Run folder, one of its checkpoints, or a Hugging Face folder."""
    prompt: str
    """Text to go on from."""
    max_new_tokens: int = 64
    """Tokens to add at most."""
    temperature: float = 0.0
    """0 takes the likeliest token each time; higher is more varied."""
    top_p: float = 1.0
    """With a temperature: sample from the likeliest tokens that hold this much probability."""
    seed: int = 1234
    """Seed of the sampling."""
    tokenizer: str | None = None
    """SentencePiece model or Hugging Face tokenizer; default: the one the run was configured with."""


def main() -> None:
    request = parse_cli(GenerateRequest, sys.argv[1:], description=__doc__)
    if not (request.temperature == 0 or 0.001 <= request.temperature <= 1000):
        raise UserError(f"--temperature {request.temperature}: give 0, or 0.001 to 1000")
    if not 0 < request.top_p <= 1 or request.max_new_tokens < 1 or not 0 <= request.seed < 2**63:
        raise UserError("--top-p must be in (0, 1], --max-new-tokens at least 1, --seed 0 or more and below 2^63")
    if any("\ud800" <= character <= "\udfff" for character in request.prompt):
        raise UserError("--prompt is not UTF-8; give it in the terminal's encoding, or set LC_ALL=C.UTF-8")
    # seconds to import; a wrong flag should not wait for them
    import torch

    from megasink.checkpoint.generation import load_for_generation
    from megasink.tokenize.tokenizers import load_tokenizer

    model, tokenizer_path = load_for_generation(Path(request.checkpoint))
    tokenizer_path = request.tokenizer or tokenizer_path
    if tokenizer_path is None:
        raise UserError("--tokenizer: the run was trained without naming one; give the tokenizer of its data")
    tokenizer = load_tokenizer(tokenizer_path)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"--tokenizer {tokenizer_path} has {tokenizer.vocab_size} entries, the model {model.config.vocab_size}; "
            "give the tokenizer the model was trained with"
        )
    ids = tokenizer.encode_batch([request.prompt])[0].tolist()
    if tokenizer.bos_id is not None:
        ids = [tokenizer.bos_id, *ids]
    if not ids:
        raise UserError("--prompt is empty and the tokenizer has no BOS token; give some text")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(request.seed)
    sampling = {"temperature": request.temperature, "top_p": request.top_p} if request.temperature > 0 else {}
    tokens = torch.tensor([ids], device=device)
    output = model.to(device).generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=request.max_new_tokens,
        do_sample=request.temperature > 0,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=0,
        use_cache=True,
        **sampling,
    )
    control = (tokenizer.bos_id, tokenizer.eos_id)  # a tokenizer.json would spell them out
    print(tokenizer.decode([token for token in output[0].tolist() if token not in control]))


if __name__ == "__main__":
    run_cli(main)
