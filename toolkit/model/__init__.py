"""The base model: where it is, its shape, and the memory that training it takes."""
