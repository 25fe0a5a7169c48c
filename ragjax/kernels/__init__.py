"""Machine code of our own for what XLA does slowly on CPU."""
