"""Names from a file, as a message shows them."""

from collections.abc import Sequence


def visible(name: str) -> str:
    """Return a name's first 80 characters; control characters are escaped."""
    shown = name if len(name) <= 80 else f"{name[:79]}…"
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in shown)


def first_names(names: Sequence[str], most: int) -> str:
    """Return the first names in backticks, and how many more there are."""
    shown = ", ".join(f"`{name}`" for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def three_names(names: Sequence[str]) -> str:
    """Return the first three names in backticks; an ellipsis stands for more."""
    return ", ".join(f"`{name}`" for name in names[:3]) + (", …" if len(names) > 3 else "")
