"""What a parameter's annotation says once its aliases are spelled out, read from the source of the modules alone."""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterable
from pathlib import Path


class Aliases(ast.NodeTransformer):
    """Puts what a module's type alias stands for in its place (`Precision` -> `Literal["fp32", "bf16"]`)."""

    def __init__(self, body: Iterable[ast.stmt], keep: frozenset[str] = frozenset(), depth: int = 2) -> None:
        """`keep`: names that say more than what they stand for. `depth`: modules to follow."""
        self.keep, self.depth = keep, depth
        self.own: dict[str, ast.expr] = {}
        self.imported: dict[str, tuple[str, str]] = {}  # name -> (module, its name there)
        for node in body:
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                self.imported |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
            elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Subscript | ast.BinOp):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                self.own |= {target.id: node.value for target in targets if isinstance(target, ast.Name)}

    def spelled_out(self, args: ast.arguments) -> ast.arguments:
        """The arguments with their annotations free of aliases."""
        for arg in [*args.posonlyargs, *args.args, *args.kwonlyargs]:
            if arg.annotation is not None:
                arg.annotation = self.visit(arg.annotation)
        return args

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in self.keep:
            return node  # `Partition` says more than the callable that it stands for
        if node.id in self.own:
            return self.own[node.id]
        module, name = self.imported.get(node.id, ("", ""))
        if module.partition(".")[0] in ("typing", "collections", "torch", "pathlib", "") or not self.depth:
            return node
        there = _alias_of(module, self.keep, self.depth - 1)
        return there.visit_Name(ast.Name(name)) if there and name in {*there.own, *there.imported} else node


@functools.cache
def _alias_of(module: str, keep: frozenset[str], depth: int) -> Aliases | None:
    """The aliases of another module, from its source."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None  # an optional package: its names stay as they are spelled
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Aliases(ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body, keep, depth)
