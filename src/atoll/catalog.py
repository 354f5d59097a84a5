"""Every name that a job file may use, found in the folders by reading the source: nothing is registered or imported.

A factory is catalogued when it is a public top-level function in its kind's folder whose return annotation is the
kind's type, spelled plainly (`-> Algorithm[State]`), and whose required parameters are simple values, callables,
products of other kinds or sequences of products (what takes one of its own kind is a wrapper). Modules of installed
packages join through the entry-point group `atoll.plugins`; each entry point names a module, or a package whose modules
are all read.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from atoll.annotations import Aliases
from atoll.errors import unknown

GROUP = "atoll.plugins"


class Kind(NamedTuple):
    """One kind of factory: what it is called, where it lives, and the type that marks it."""

    name: str
    place: str  # a folder, or a module, of this package
    marker: str  # the last word of the return annotation


KINDS = {
    kind.name: kind
    for kind in (
        Kind("algorithm", "algorithms", "Algorithm"),
        Kind("local", "local", "Local"),
        Kind("dataset", "data", "Dataset"),
        Kind("partition", "data", "Partition"),
        Kind("task", "tasks", "Task"),
        Kind("model", "models", "Module"),
        Kind("transform", "transforms", "Transform"),
        Kind("aggregator", "aggregators", "Aggregator"),
        Kind("policy", "policy.py", "Policy"),
        Kind("selection", "selection", "Selection"),
        Kind("server_opt", "server_opt.py", "ServerOpt"),
        Kind("engine", "engines", "Engine"),
        Kind("fleet", "fleets", "Fleet"),
        Kind("energy", "fleets", "Energy"),
    )
}


_SIMPLE = {"int", "float", "str", "bool", "Any", "object", "Path", "PathLike", "Literal", "Callable", "list", "tuple", "Optional"}
_MARKERS = {kind.marker: kind.name for kind in KINDS.values()}


class Parameter(NamedTuple):
    """One parameter of a factory, as its source spells it."""

    name: str
    annotation: str
    default: Any = None  # the literal, or None when there is none or it is not a literal
    required: bool = True
    shown: str = ""  # the default's source text
    variadic: bool = False  # *args or **kwargs


class Entry(NamedTuple):
    """One catalogued name."""

    kind: str
    name: str
    module: str
    summary: str  # the first line of the docstring
    parameters: tuple[Parameter, ...] = ()
    about: Mapping[str, Any] = {}  # the module's literal ABOUT
    traffic: Mapping[str, Any] = {}  # the module's literal TRAFFIC: models a client and a round, each way (`job.plan`)
    needs: tuple[tuple[str, str], ...] = ()  # (package, extra) that the factory may ask for
    said: frozenset[str] = frozenset()  # what its source sets to True by name, such as bounds_norm or composite

    def load(self) -> Callable[..., Any]:
        """Import the module and return the factory."""
        factory: Callable[..., Any] = getattr(importlib.import_module(self.module), self.name)
        return factory

    def parameter(self, name: str) -> Parameter | None:
        """The parameter of that name, or None."""
        return next((parameter for parameter in self.parameters if parameter.name == name), None)


def entries(kind: str) -> tuple[Entry, ...]:
    """All entries of a kind, by name.

    >>> any(entry.name == "sgd" for entry in entries("server_opt"))
    True
    """
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    return tuple(sorted(_table(kind).values(), key=lambda entry: entry.name))


def find(kind: str, name: str) -> Entry:
    """The entry of that kind and name.

    Raises:
        UnknownName: no such name; the message offers the nearest.

    >>> find("policy", "synchronus")
    Traceback (most recent call last):
    atoll.errors.UnknownName: no policy is called 'synchronus'; did you mean 'synchronous'? Known: ...
    """
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    table = _table(kind)
    if name not in table:
        raise unknown(kind.replace("_", " "), name, table)
    return table[name]


def named(name: str) -> tuple[Entry, ...]:
    """The entries of any kind that bear this name, in the order of KINDS."""
    return tuple(_table(kind)[name] for kind in KINDS if name in _table(kind))


def refresh() -> None:
    """Forget what was read, so that files and packages added since are seen."""
    _table.cache_clear()
    _plugins.cache_clear()


def scan(place: Path, package: str, markers: Mapping[str, str]) -> Iterator[Entry]:
    """The factories in a module, or in all modules of a folder; `markers` maps a return type to its kind."""
    if place.is_file():
        yield from read(place, package, markers)
        return
    for path in sorted(place.rglob("*.py")):
        inside = [part for part in path.relative_to(place).with_suffix("").parts if part != "__init__"]
        yield from read(path, ".".join([package, *inside]), markers)


def read(path: Path, module: str, markers: Mapping[str, str]) -> Iterator[Entry]:
    """The factories of one module, from its source."""
    text = path.read_text(encoding="utf-8")
    if not any(marker in text for marker in markers):  # parsing costs ten times what reading does
        return
    body = ast.parse(text, filename=str(path)).body
    aliases = Aliases(body, frozenset(_MARKERS))
    functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
    about, traffic = _literal(body, "ABOUT"), _literal(body, "TRAFFIC")
    for name, node in functions.items():
        kind = markers.get(_last_word(node.returns))
        if kind is None or name.startswith("_"):
            continue
        parameters = tuple(_parameters(aliases.spelled_out(node.args)))
        if any(parameter.required and not _given(parameter.annotation, kind) for parameter in parameters):
            continue
        summary = (ast.get_docstring(node) or "").strip().partition("\n")[0]
        own = about.get(name)
        yield Entry(
            kind,
            name,
            module,
            summary,
            parameters,
            own if isinstance(own, dict) else about,
            traffic,
            tuple(_needs(node, functions)),
            frozenset(_said(node)),
        )


def markdown() -> str:
    """docs/catalog.md: one table a kind, one row a name."""
    lines = [
        "# Catalog",
        "",
        "Every name that a job file may use. Written by `atoll catalog --markdown`; a test holds it to the code.",
    ]
    for kind in KINDS:
        rows = entries(kind)
        if not rows:
            continue
        lines += ["", f"## {kind.replace('_', ' ').capitalize()}", "", "| name | what | parameters |", "|---|---|---|"]
        lines += [f"| `{row.name}` | {_cell(row.summary)} | {_cell(_settings(row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _settings(entry: Entry) -> str:
    """Its parameters, without those that are other factories' products or what an engine is handed."""
    shown = []
    for parameter in entry.parameters:
        if not parameter.required:
            shown.append(f"`{parameter.name} = {parameter.shown}`")
        elif _word(parameter.annotation) in _SIMPLE or _kind_of_each(parameter.annotation):
            shown.append(f"`{parameter.name}`")
    return ", ".join(shown)


@functools.cache
def _table(kind: str) -> dict[str, Entry]:
    place = KINDS[kind].place
    here = Path(__file__).parent / place
    package = "atoll." + place.removesuffix(".py").replace("/", ".")
    own = scan(here, package, {KINDS[kind].marker: kind}) if here.exists() else iter(())
    table = {entry.name: entry for entry in _plugins() if entry.kind == kind}
    return table | {entry.name: entry for entry in own}  # a plugin can't change what one of our names means


@functools.cache
def _plugins() -> tuple[Entry, ...]:
    found: list[Entry] = []
    for point in importlib.metadata.entry_points(group=GROUP):
        spec = importlib.util.find_spec(point.module)
        if spec is None or spec.origin is None:
            continue  # installed, then removed by hand: its names are simply unknown
        place = Path(spec.origin)
        found += scan(place.parent if place.name == "__init__.py" else place, point.module, _MARKERS)
    return tuple(found)


def _literal(body: Iterable[ast.stmt], name: str) -> Mapping[str, Any]:
    """The module-level literal dict of that name, or an empty one."""
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            try:
                value = ast.literal_eval(node.value)  # type: ignore[attr-defined,unused-ignore]
            except ValueError:
                return {}  # computed, not literal: only the imported module knows it
            return value if isinstance(value, dict) else {}
    return {}


def _last_word(annotation: ast.expr | None) -> str:
    """`nn.Module` -> Module, `Algorithm[State]` -> Algorithm, `"Task"` -> Task."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    if isinstance(annotation, ast.Subscript):
        annotation = annotation.value
    if isinstance(annotation, ast.Attribute):
        return annotation.attr
    return annotation.id if isinstance(annotation, ast.Name) else ""


def _given(annotation: str, kind: str) -> bool:
    """A factory's required parameter is a simple value, a callable, or another kind's product.

    Engines are handed the clients and their work. What needs its own kind is a wrapper, which a job names beside what it
    wraps only where it takes a sequence of them. What needs anything else (`recipe: Recipe`) is a part of other factories.
    """
    word = _word(annotation)
    if word in _MARKERS:
        return _MARKERS[word] != kind
    return (
        kind == "engine"
        or word in _SIMPLE
        or word == ""
        or annotation.startswith(("Mapping[str, Any", "Sequence[str", "Sequence[int"))
        or bool(_kind_of_each(annotation))
    )


def _word(annotation: str) -> str:
    return _last_word(ast.parse(annotation, mode="eval").body)


def _kind_of_each(annotation: str) -> str | None:
    """`Sequence[Transform[Any]]` -> transform."""
    node = ast.parse(annotation, mode="eval").body
    if isinstance(node, ast.Subscript) and _last_word(node) == "Sequence":
        return _MARKERS.get(_last_word(node.slice))
    return None


def _parameters(args: ast.arguments) -> Iterator[Parameter]:
    positional = args.posonlyargs + args.args
    missing = len(positional) - len(args.defaults)
    paired = [
        *zip(positional, [None] * missing + list(args.defaults), strict=True),
        *zip(args.kwonlyargs, args.kw_defaults, strict=True),
    ]
    for arg, default in paired:
        annotation = ast.unparse(arg.annotation) if arg.annotation else "Any"
        if default is None:
            yield Parameter(arg.arg, annotation)
            continue
        try:
            value = ast.literal_eval(default)
        except ValueError:
            value = None
        yield Parameter(arg.arg, annotation, value, False, ast.unparse(default))
    for extra in (args.vararg, args.kwarg):
        if extra is not None:
            yield Parameter(extra.arg, ast.unparse(extra.annotation) if extra.annotation else "Any", None, False, "", True)


def _said(node: ast.FunctionDef) -> Iterator[str]:
    """`Properties(bounds_norm=True)` says bounds_norm."""
    for part in ast.walk(node):
        if isinstance(part, ast.keyword) and part.arg and isinstance(part.value, ast.Constant) and part.value.value is True:
            yield part.arg


def _needs(node: ast.FunctionDef, functions: Mapping[str, ast.FunctionDef]) -> Iterator[tuple[str, str]]:
    """The packages named by `missing_extra(package, extra, ...)` in the factory or in what it calls in its module."""
    seen: set[str] = set()
    reach, found = [node], set()
    while reach:
        for part in ast.walk(reach.pop()):
            if isinstance(part, ast.Name) and part.id in functions and part.id not in seen:
                seen.add(part.id)
                reach.append(functions[part.id])
            if isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id == "missing_extra":
                words = [arg.value for arg in part.args[:2] if isinstance(arg, ast.Constant)]
                if len(words) == 2:
                    found.add((str(words[0]), str(words[1])))
    yield from sorted(found)
