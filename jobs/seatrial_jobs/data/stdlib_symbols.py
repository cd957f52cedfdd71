"""The public functions, classes and methods of this Python's standard library, with what their docs say.

Python sources are parsed, never imported. Modules written in C have no source, so those that are built in or
extension modules of the interpreter are imported and inspected in a process of their own.
"""

from __future__ import annotations

import ast
import importlib.machinery
import json
import re
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

LEFT_OUT = frozenset(
    [
        "antigravity",
        "distutils",
        "encodings",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "msilib",
        "nt",
        "ntpath",
        "nturl2path",
        "pydoc_data",
        "readline",
        "sre_compile",
        "sre_constants",
        "sre_parse",
        "test",
        "tests",
        "this",
        "tkinter.tix",
        "turtledemo",
        "xxlimited",
        "xxlimited_35",
        "xxsubtype",
        "__main__",
    ]
)
"""Tests, demonstrations, what other names offer too, and what left the library after 3.11."""

USUAL_NAMES = {
    "posix": "os",
    "posixpath": "os.path",
    "genericpath": "os.path",
    "pyexpat": "xml.parsers.expat",
}
"""Modules whose names are offered by another, which is the one that everybody imports."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Symbol:
    """One documented name."""

    module: str
    """Where users import it from, such as `asyncio` for a class of `asyncio.locks`."""
    name: str
    """Name inside the module, such as `ZipFile.writestr`."""
    kind: str
    """`function`, `class` or `method`."""
    parameters: str | None
    """Parameters in brackets as Python writes them, without `self`."""
    doc: str

    @property
    def path(self) -> str:
        """Dotted path, unique in the library."""
        return f"{self.module}.{self.name}"


def modules() -> Iterator[tuple[str, Path | None]]:
    """Public modules by name, with the source where there is one, in order of their names."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    found: dict[str, Path | None] = {
        name: None for name in sys.stdlib_module_names if name in sys.builtin_module_names or _extension(name)
    }
    for path in stdlib.rglob("*.py"):
        parts = path.relative_to(stdlib).with_suffix("").parts
        if parts[0] in sys.stdlib_module_names:
            found[".".join(parts).removesuffix(".__init__")] = path
    yield from sorted((name, path) for name, path in found.items() if _is_public(name, path))


def symbols(report: Callable[[int, int], None] = lambda done, total: None) -> list[Symbol]:
    """Every documented public symbol, in order of its path; ``report`` gets (modules done, all modules)."""
    everything = list(modules())
    homes = _homes(everything)
    documented = _from_c([name for name, path in everything if path is None])
    for done, (name, path) in enumerate(everything, start=1):
        documented += _from_source(name, path) if path else []
        report(done, len(everything))
    found: dict[str, Symbol] = {}
    for symbol in documented:
        usual = USUAL_NAMES.get(symbol.module, symbol.module)
        home = homes.get((symbol.module, symbol.name.split(".")[0]), usual)
        public = replace(symbol, module=home)
        found.setdefault(public.path, public)
    return [found[path] for path in sorted(found)]


def _extension(name: str) -> bool:
    spec = importlib.machinery.PathFinder.find_spec(name)
    return spec is not None and isinstance(spec.loader, importlib.machinery.ExtensionFileLoader)


def _is_public(name: str, path: Path | None) -> bool:
    parts = name.split(".")
    prefixes = {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
    if LEFT_OUT & (prefixes | set(parts)):
        return False
    if path is None:  # `_struct` documents `struct`
        return name in sys.stdlib_module_names and not name.startswith(("_test", "_xx", "__"))
    return not any(part.startswith("_") for part in parts)


def _homes(everything: list[tuple[str, Path | None]]) -> dict[tuple[str, str], str]:
    """(module, name) → the package that offers the name itself, as `asyncio` does for `asyncio.locks`."""
    homes: dict[tuple[str, str], str] = {}
    for package, path in everything:
        if path is None or path.name != "__init__.py":
            continue
        for node in _parse(path).body:
            if not isinstance(node, ast.ImportFrom) or node.level > 1:
                continue
            source = f"{package}.{node.module}" if node.level else str(node.module)
            if not source.startswith(f"{package}."):
                continue
            names = [alias.name for alias in node.names]
            if names == ["*"]:
                names = _exported(next((p for name, p in everything if name == source), None))
            homes |= {(source, name): package for name in names}
    return homes


def _exported(path: Path | None) -> list[str]:
    """Names in a module's `__all__`."""
    for node in _parse(path).body if path else []:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List | ast.Tuple):
            targets = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if targets == ["__all__"]:
                return [str(item.value) for item in node.value.elts if isinstance(item, ast.Constant)]
    return []


def _parse(path: Path) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in somebody else's strings
        return ast.parse(path.read_bytes())


def _from_source(module: str, path: Path) -> Iterator[Symbol]:
    def walk(body: list[ast.stmt], outer: str) -> Iterator[Symbol]:
        for node in body:
            if not isinstance(node, Definition) or node.name.startswith("_"):
                continue
            doc = ast.get_docstring(node)
            if doc:
                kind = _kind(node, outer)
                yield Symbol(module, outer + node.name, kind, _parameters(node, kind), doc)
            if isinstance(node, ast.ClassDef):
                yield from walk(node.body, f"{outer}{node.name}.")

    yield from walk(_parse(path).body, "")


def _kind(node: Definition, outer: str) -> str:
    if isinstance(node, ast.ClassDef):
        return "class"
    return "method" if outer else "function"


def _parameters(node: Definition, kind: str) -> str | None:
    if isinstance(node, ast.ClassDef):
        made = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
        return _parameters(made[0], "method") if made else None
    arguments = ast.unparse(node.args)
    decorators = {ast.unparse(item) for item in node.decorator_list}
    if any(name.endswith(("property", ".setter", ".deleter")) for name in decorators):
        return None
    if kind == "method" and "staticmethod" not in decorators:
        arguments = re.sub(r"^(self|cls|mcs)\b(: [^,]+)?(, /)?(, )?", "", arguments)
    return f"({arguments})"


def _from_c(names: list[str]) -> list[Symbol]:
    """Symbols of modules written in C, from an interpreter that has loaded nothing else.

    In this process other packages may have added to them (`ssl` and `gc` gain names in a test run).
    """
    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("stdlib_inspect.py")), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8")
    return [Symbol(**row) for row in json.loads(done.stdout)]
