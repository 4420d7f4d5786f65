"""Text for people: columns that are aligned, and nothing that a terminal would obey."""

from __future__ import annotations

from collections.abc import Sequence

_ON_THE_LEFT = {
    *("NAME", "OPEN IN", "DIMS", "DEAD PROCESS", "WHAT", "PROCESS", "COMMAND"),
    *("DIRECTORY", "SEEN BY", "MEMORY OF", "SEGMENTS OF", "SENT BY", "RECEIVED BY", "REMARK"),
}


def printable(text: str) -> str:
    """A text with its control characters written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table(heads: Sequence[str], *rows: Sequence[object]) -> str:
    """Columns of text."""
    columns = []
    for head, *cells in zip(heads, *rows, strict=True):
        texts = [head, *(printable(str(cell)) for cell in cells)]
        width = max(map(len, texts))
        columns.append([f"{t:{width}}" if head in _ON_THE_LEFT else f"{t:>{width}}" for t in texts])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def sizes(dims: dict[str, int]) -> str:
    """Dimensions, as in ``time: 240, lat: 37``."""
    return ", ".join(f"{dim}: {size}" for dim, size in dims.items())
