"""Names from a file, as a message shows them."""


def visible(name: str) -> str:
    """Return a name's first 80 characters; control characters are escaped."""
    shown = name if len(name) <= 80 else f"{name[:79]}…"
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in shown)
