"""The Ollama server: requests, tags and blobs, and the Modelfile."""
