"""The vocabulary as a GGUF holds it."""
