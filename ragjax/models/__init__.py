"""Pure networks of (params, tokens); they know nothing of training."""
