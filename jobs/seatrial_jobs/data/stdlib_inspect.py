"""Documented names of modules written in C, as JSON on standard output.

Run as a script in a clean interpreter: `python -I -S stdlib_inspect.py MODULE...`. It imports nothing but the
standard library.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
import types
import warnings
from collections.abc import Iterator

Row = dict[str, str | None]


def names_of(module: str) -> Iterator[Row]:
    """Rows with the fields of a `Symbol`; none where the module was built without a library that it needs."""
    public = module.removeprefix("_")  # `_struct` documents `struct`
    if public not in sys.stdlib_module_names:
        return
    try:
        loaded = importlib.import_module(module)
    except ImportError:
        return
    for name, value in sorted(vars(loaded).items()):
        if name.startswith("_"):
            continue
        if isinstance(value, type):
            yield from _names_of_class(public, name, value)
        elif isinstance(value, types.BuiltinFunctionType) and inspect.getdoc(value):
            yield _row(public, name, "function", value)


def _names_of_class(module: str, name: str, value: type) -> Iterator[Row]:
    if value.__doc__:
        yield _row(module, name, "class", value)
    for attribute, member in sorted(vars(value).items()):
        if not attribute.startswith("_") and callable(member) and inspect.getdoc(member):
            yield _row(module, f"{name}.{attribute}", "method", member)


def _row(module: str, name: str, kind: str, value: object) -> Row:
    doc = inspect.getdoc(value) or ""
    return {"module": module, "name": name, "kind": kind, "parameters": _parameters(value), "doc": doc}


def _parameters(value: object) -> str | None:
    written = getattr(value, "__text_signature__", None)
    if not written:
        return None
    bare = re.sub(r"^\(\$?(self|type|module|cls)(, /)?(, )?", "(", written)
    return " ".join(bare.split())


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # deprecated modules say so when imported
    print(json.dumps([row for module in sys.argv[1:] for row in names_of(module)]))
