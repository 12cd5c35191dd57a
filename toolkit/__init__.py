"""Fine-tune a language model on questions and answers, and prove that what Ollama runs is what was trained."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.core.errors import ToolkitError as ToolkitError
    from toolkit.pipeline.run import Run as Run

__all__ = ["Run", "ToolkitError", "__version__"]
__version__ = "0.2.0"
DISTRIBUTION = "medassist-toolkit"  # what pip calls this package
_PLACES = {"Run": "toolkit.pipeline.run", "ToolkitError": "toolkit.core.errors"}


def __getattr__(name: str) -> object:
    """Import what Python programs use when they first name it: `toolkit --help` needs none of it."""
    if name not in _PLACES:
        raise AttributeError(f"module 'toolkit' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    """List those too, so that a notebook completes their names."""
    return sorted({*globals(), *_PLACES})
