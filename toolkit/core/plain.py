"""Tables as plain text, for a machine without `rich`."""

from collections.abc import Sequence


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str) -> str:
    """Format rows as text, in columns as wide as their longest cell; numbers are right-aligned."""
    cells = [list(columns), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [is_numeric(rows, index) for index in range(len(columns))]
    lines = [
        "  ".join(
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(line, widths, right, strict=True)
        )
        for line in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in ([title] if title else []) + lines)


def is_numeric(rows: Sequence[Sequence[object]], index: int) -> bool:
    """Tell whether a column holds only numbers, with or without a unit."""
    return bool(rows) and all(_is_number(row[index]) for row in rows)


def _is_number(cell: object) -> bool:
    text = str(cell).strip().rstrip("%")
    for unit in (" GB", " MB", " kB", " B", " s"):
        text = text.removesuffix(unit)
    try:
        float(text.replace(",", ""))
    except ValueError:
        return text in ("", "-")
    return True
