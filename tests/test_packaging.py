"""pyproject.toml, constraints.txt and the imports in src say the same."""

from __future__ import annotations

import ast
import functools
import importlib.metadata as metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "atoll"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE = {canonicalize_name(Requirement(line).name): Requirement(line) for line in PROJECT["dependencies"]}
EXTRAS = {
    extra: {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}
    for extra, lines in PROJECT["optional-dependencies"].items()
}


WHOLE = {"identity": "net"}  # packages that are of one extra altogether, which nothing else imports at its top


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[^+\s;]+", line), f"constraints.txt: {line!r} is not NAME==VERSION"
    found: dict[str, str] = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}
    assert len(found) == len(lines), "constraints.txt pins a package twice"
    return found


@pytest.mark.parametrize("extra", ["base", *EXTRAS])
def test_every_requirement_is_pinned_within_its_bounds(extra: str) -> None:
    pinned = pins()
    for package, requirement in (BASE if extra == "base" else EXTRAS[extra]).items():
        if package != "atoll":
            assert package in pinned, f"constraints.txt does not pin {package}"
            assert Version(pinned[package]) in requirement.specifier, f"{package} {pinned[package]} is not {requirement}"


def test_what_the_requirements_require_is_pinned() -> None:
    pinned, seen, todo = pins(), set[tuple[str, str]](), [("atoll", extra) for extra in ("", *EXTRAS)]
    while todo:
        package, extra = todo.pop()
        if (package, extra) in seen:
            continue
        seen.add((package, extra))
        assert package == "atoll" or package in pinned, f"constraints.txt does not pin {package}"
        for line in metadata.requires(package) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                todo += [(canonicalize_name(requirement.name), more) for more in ("", *requirement.extras)]


def test_an_extra_of_its_own_stays_out_of_the_base() -> None:
    for extra in ("llm", "data", "postgres", "tensorboard", "mlflow"):
        assert not BASE.keys() & EXTRAS[extra].keys()


def top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run on import, those under `if TYPE_CHECKING` left out."""
    todo = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
        elif isinstance(node, ast.If | ast.Try | ast.With):
            todo += [child for child in ast.walk(node) if isinstance(child, ast.stmt) and child is not node]
        else:
            yield node


@functools.cache
def homes() -> dict[str, list[str]]:
    """Module -> the distributions that it may come from."""
    return dict(metadata.packages_distributions())


def imported(nodes: Iterator[ast.AST]) -> set[str]:
    """The distributions, but for the standard library and Atoll, that these nodes import."""
    modules = set[str]()
    for node in nodes:
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module.split(".")[0])
    return {_home(module) for module in modules - sys.stdlib_module_names - {"atoll"}}


def _home(module: str) -> str:
    """The distribution that a module comes with; of several that share a name, such as `google`, one that is required."""
    found = [canonicalize_name(home) for home in homes().get(module, [module])]
    return next((home for home in found if home in BASE), found[0])


WRITTEN = sorted(path for path in SRC.rglob("*.py") if not path.stem.endswith("_pb2"))  # the rest is made by protoc


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.relative_to(SRC).as_posix())
def test_imports_are_required(path: Path) -> None:
    tree = ast.parse(path.read_text())
    optional = {package for extra in EXTRAS.values() for package in extra}
    undeclared = imported(ast.walk(tree)) - BASE.keys() - optional
    assert not undeclared, f"{path.name} imports {undeclared}, which pyproject.toml does not require"
    home = path.relative_to(SRC).parts[0]
    eager = imported(top_level(tree)) - BASE.keys() - EXTRAS.get(WHOLE.get(home, ""), {}).keys()
    assert not eager, f"{path.name} imports the optional {eager} at its top; import in the function that needs it"


@pytest.mark.parametrize("package", WHOLE)
def test_a_package_of_an_extra_is_imported_where_it_is_needed(package: str) -> None:
    for path in sorted(SRC.rglob("*.py")):
        if path.relative_to(SRC).parts[0] != package:
            text = "\n".join(
                ast.unparse(node)
                for node in top_level(ast.parse(path.read_text()))
                if isinstance(node, ast.Import | ast.ImportFrom)
            )
            assert f"atoll.{package}" not in text, f"{path.name} imports atoll.{package} at its top"


def missing_extras() -> Iterator[tuple[str, str, str]]:
    """(place, package, extra) of every `missing_extra("package", "extra", ...)` in the sources."""
    for path in sorted(SRC.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("missing_extra"):
                match node.args:
                    case [ast.Constant(value=str(package)), ast.Constant(value=str(extra)), *_]:
                        yield f"{path.name}:{node.lineno}", package, extra


def test_an_error_names_an_extra_that_brings_the_package() -> None:
    for place, package, extra in missing_extras():
        assert extra in EXTRAS, f"{place}: no extra is called {extra!r}"
        distribution = canonicalize_name(homes().get(package, [package])[0])
        assert distribution in EXTRAS[extra], f"{place}: the extra {extra!r} does not bring {package!r}"
