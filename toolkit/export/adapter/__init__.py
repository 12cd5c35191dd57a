"""The adapter: its files, its changes to the base, and their merge."""
