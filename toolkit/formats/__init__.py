"""File formats: safetensors, GGUF, bitsandbytes' 4 bits, ggml's types; nothing here knows a model."""
