"""Fine-tune a language model on questions and answers, and prove that what Ollama runs is what was trained."""

__version__ = "0.1.0"
DISTRIBUTION = "medassist-toolkit"  # what pip calls this package
