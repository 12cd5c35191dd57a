"""Where the tests find what is not theirs."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
