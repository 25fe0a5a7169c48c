"""State, the one XLA step, the loop, checkpoints."""
