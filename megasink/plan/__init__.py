"""What a run will need, before it starts: memory, communication, time, from formulas; the model on the meta device."""
