"""Evaluation: what the base, the trained model and each GGUF answer, side by side, with intervals."""
