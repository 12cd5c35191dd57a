"""The one prompt format: its renderings, and the tokenizer that must read them alike."""
