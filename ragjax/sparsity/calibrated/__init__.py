"""One-shot pruning of a trained model, guided by what its matrices are given on a calibration text."""
