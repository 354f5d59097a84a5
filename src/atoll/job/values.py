"""Does a TOML value fit a parameter, judged by the parameter's annotation and name alone: no factory is imported."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from atoll.catalog import KINDS, Parameter

_SCALARS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool)),
    "float": ("a number", lambda v: isinstance(v, int | float) and not isinstance(v, bool)),
    "bool": ("true or false", lambda v: isinstance(v, bool)),
    "str": ("a text in quotes", lambda v: isinstance(v, str)),
    "Path": ("a path in quotes", lambda v: isinstance(v, str)),
    "PathLike": ("a path in quotes", lambda v: isinstance(v, str)),
    "Any": ("any value", lambda _: True),
    "object": ("any value", lambda _: True),
}
_LISTS = {"list", "Sequence", "Iterable", "tuple", "Collection"}
_TABLES = {"dict", "Mapping"}


class Bound(NamedTuple):
    """What a number must satisfy, and the mend."""

    text: str
    holds: Callable[[float], bool]


_ABOVE_0 = Bound("must be above 0", lambda v: v > 0)
_AT_LEAST_0 = Bound("must be 0 or more", lambda v: v >= 0)
_AT_LEAST_1 = Bound("must be 1 or more", lambda v: v >= 1)
_SHARE = Bound("must be above 0 and at most 1", lambda v: 0 < v <= 1)
_FACTOR = Bound("must be 0 or more and below 1", lambda v: 0 <= v < 1)
# One name means one thing in every factory, so the ranges that no factory would relax can be said without importing it.
BOUNDS: Mapping[str, Bound] = {
    "lr": _ABOVE_0,
    "batch_size": _AT_LEAST_1,
    "epochs": _AT_LEAST_1,
    "steps": _AT_LEAST_1,
    "accumulate": _AT_LEAST_1,
    "clients": _AT_LEAST_1,
    "clients_per_round": _AT_LEAST_1,
    "clients_in_flight": _AT_LEAST_1,
    "buffer": _AT_LEAST_1,
    "workers": _AT_LEAST_1,
    "rank": _AT_LEAST_1,
    "alpha": _ABOVE_0,
    "norm": _ABOVE_0,
    "timeout_s": _ABOVE_0,
    "lease_s": _ABOVE_0,
    "factor": _AT_LEAST_1,
    "mu": _AT_LEAST_0,
    "weight_decay": _AT_LEAST_0,
    "momentum": _FACTOR,
    "beta": _FACTOR,
    "b1": _FACTOR,
    "b2": _FACTOR,
    "test_fraction": _FACTOR,
    "fraction": _SHARE,
    "decay": _SHARE,
    "participation": _SHARE,
    "dropout": _FACTOR,
}


def problem(parameter: Parameter, value: Any) -> str | None:
    """Why the value can't be this parameter's, as the end of a sentence, or None.

    >>> problem(Parameter("lr", "float"), -1)
    'must be above 0'
    >>> problem(Parameter("late", "Literal['drop', 'keep']"), "wait")
    "must be 'drop' or 'keep'"
    """
    annotation = _parsed(parameter.annotation)
    if not _fits(annotation, value):
        return f"must be {_wanted(annotation)}"
    bound = BOUNDS.get(parameter.name)
    if bound and isinstance(value, int | float) and not isinstance(value, bool) and not bound.holds(value):
        return bound.text
    return None


def settable(annotation: str) -> bool:
    """A TOML value can stand for it.

    >>> settable("int | None"), settable("Local[Any]"), settable("Callable[[], nn.Module] | None")
    (True, False, False)
    """
    return any(_plain(arm) for arm in _arms(_parsed(annotation)))


def kind_of(annotation: str) -> str | None:
    """The catalog kind of a value that another factory makes.

    >>> kind_of("Local[Any]"), kind_of("nn.Module"), kind_of("Partition | None"), kind_of("float")
    ('local', 'model', 'partition', None)
    """
    kinds = {kind.marker: kind.name for kind in KINDS.values()}
    return next((kinds[word] for arm in _arms(_parsed(annotation)) if (word := _head(arm)) in kinds), None)


def kind_of_each(annotation: str) -> str | None:
    """The catalog kind of the members of a list whose members other factories make.

    >>> kind_of_each("Sequence[Transform[Any]]"), kind_of_each("Sequence[int]"), kind_of_each("Transform[Any]")
    ('transform', None, None)
    """
    lists = [arm for arm in _arms(_parsed(annotation)) if _head(arm) in _LISTS]
    return next((kind for arm in lists for part in _inner(arm) if (kind := kind_of(ast.unparse(part)))), None)


@functools.cache
def _parsed(annotation: str) -> ast.expr:
    try:
        tree = ast.parse(annotation, mode="eval").body
    except SyntaxError:
        return ast.Name("Any")
    if isinstance(tree, ast.Constant) and isinstance(tree.value, str):
        return _parsed(tree.value)
    return tree


def _arms(annotation: ast.expr) -> list[ast.expr]:
    """The alternatives of a union, without None."""
    if isinstance(annotation, ast.BinOp):
        return _arms(annotation.left) + _arms(annotation.right)
    if isinstance(annotation, ast.Subscript) and _head(annotation) in ("Optional", "Annotated"):
        inner = annotation.slice
        return _arms(inner.elts[0] if isinstance(inner, ast.Tuple) else inner)
    return [] if isinstance(annotation, ast.Constant) and annotation.value is None else [annotation]


def _head(annotation: ast.expr) -> str:
    if isinstance(annotation, ast.Subscript):
        annotation = annotation.value
    if isinstance(annotation, ast.Attribute):
        return annotation.attr
    return annotation.id if isinstance(annotation, ast.Name) else ""


def _plain(arm: ast.expr) -> bool:
    head = _head(arm)
    if head in _LISTS or head in _TABLES:
        inner = _inner(arm)
        return not inner or all(settable(ast.unparse(part)) for part in inner)
    return head in _SCALARS or head == "Literal"


def _inner(arm: ast.expr) -> list[ast.expr]:
    if not isinstance(arm, ast.Subscript):
        return []
    parts = arm.slice.elts if isinstance(arm.slice, ast.Tuple) else [arm.slice]
    return [part for part in parts if not (isinstance(part, ast.Constant) and part.value is Ellipsis)]


def _fits(annotation: ast.expr, value: Any) -> bool:
    return any(_fits_arm(arm, value) for arm in _arms(annotation))


def _fits_arm(arm: ast.expr, value: Any) -> bool:
    head, inner = _head(arm), _inner(arm)
    if head == "Literal":
        return any(isinstance(part, ast.Constant) and part.value == value and type(part.value) is type(value) for part in inner)
    if head in _LISTS:
        if not isinstance(value, list):
            return False
        if head == "tuple" and "..." not in ast.unparse(arm) and inner and len(inner) != len(value):
            return False
        wanted = inner if head == "tuple" and len(inner) == len(value) else inner[:1] * len(value)
        return not inner or all(_fits(part, item) for part, item in zip(wanted, value, strict=True))
    if head in _TABLES:
        return isinstance(value, dict) and (len(inner) < 2 or all(_fits(inner[1], item) for item in value.values()))
    scalar = _SCALARS.get(head)
    return scalar is not None and scalar[1](value)


def _wanted(annotation: ast.expr) -> str:
    """`a number, or a list of a text in quotes`: what would have fitted."""
    words: list[str] = []
    for arm in _arms(annotation):
        head, inner = _head(arm), _inner(arm)
        if head == "Literal":
            words += [repr(part.value) for part in inner if isinstance(part, ast.Constant)]
        elif head in _LISTS and inner:
            words.append(f"a list, each {_wanted(inner[0])}")
        elif head in _TABLES:
            words.append("a table")
        elif head in _SCALARS:
            words.append(_SCALARS[head][0])
    words = list(dict.fromkeys(words))
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
