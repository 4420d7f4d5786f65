"""The description of a container as text, much as ``ncdump -h`` shows a file's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dask.utils import format_bytes

from xshm.description import Description
from xshm.tables import printable, sizes


def text_of(description: Description) -> str:
    """Lines of what the container is, and then of each of its groups."""
    size = format_bytes(description["nbytes"])
    lines = [f"{description['name']}: {description['kind']}", f"size: {size}"]
    told = [key for key in ("created", "generation") if description[key] is not None]
    lines += [f"{key}: {description[key]}" for key in told]
    for group in description["groups"]:
        lines += ["", f"group {group['path']}", *_group(group)]
    return "\n".join(map(printable, lines))


def _group(group: Description) -> Iterator[str]:
    yield f"  dims: {sizes(group['dims'])}".rstrip()
    yield "  variables:"
    for variable in group["variables"]:
        text = f"    {variable['dtype']} {variable['name']}({', '.join(variable['dims'])})"
        if variable["coordinate"]:
            text += ", coordinate"
        if variable["chunks"] is not None:
            text += f", chunks ({', '.join(map(_chunks, variable['chunks']))})"
        yield text
        yield from _attrs(variable["attrs"], "        ")
    if group["indexes"]:
        yield "  indexes:"
        for index in group["indexes"]:
            yield f"    {index['type']}({', '.join(index['names'])})"
    if group["attrs"]:
        yield "  attrs:"
        yield from _attrs(group["attrs"], "    ")


def _chunks(chunks: list[int]) -> str:
    # One number where all are equal, but for a smaller last one; otherwise as in 100+50+100.
    is_regular = len({*chunks[:-1]}) <= 1 and chunks[-1:] <= chunks[:1]
    return "+".join(map(str, chunks[:1] if is_regular else chunks))


def _attrs(attrs: dict[str, Any], indent: str) -> Iterator[str]:
    for name, value in attrs.items():
        yield f"{indent}{name} = {value!r}"
