"""The Ollama server: asking it, its tags and blobs, and the Modelfile."""
