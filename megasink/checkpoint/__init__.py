"""Checkpoints: consolidated weights under Hugging Face names, and what a run resumes from."""
