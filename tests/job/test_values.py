"""A value is judged by the parameter's annotation and name."""

from __future__ import annotations

from typing import Any

import pytest

from atoll.catalog import Parameter
from atoll.job.values import kind_of, problem, settable


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        ("int", 3),
        ("float", 3),
        ("float | None", 0.5),
        ("str", "x"),
        ("bool", True),
        ("list[str]", []),
        ("Sequence[int]", [1, 2]),
        ("tuple[int, float]", [1, 2.5]),
        ("tuple[int, ...]", [1, 2, 3]),
        ("Literal['a', 'b'] | int", 4),
        ("Literal['a', 'b'] | int", "b"),
        ("Mapping[str, float]", {"a": 1}),
        ("str | Path", "x"),
        ("Optional[int]", 1),
        ("'int | None'", 1),
        ("dict[str, list[int]] | None", {"a": [1]}),
    ],
)
def test_fits(annotation: str, value: Any) -> None:
    assert problem(Parameter("x", annotation), value) is None


@pytest.mark.parametrize(
    ("annotation", "value", "says"),
    [
        ("int", 3.0, "must be a whole number"),
        ("int", True, "must be a whole number"),
        ("float", "3", "must be a number"),
        ("float", False, "must be a number"),
        ("str | None", 1, "must be a text in quotes"),
        ("list[str]", ["a", 1], "must be a list, each a text in quotes"),
        ("tuple[int, int]", [1], "must be a list, each a whole number"),
        ("Literal['a', 'b', 'c']", "d", "must be 'a', 'b' or 'c'"),
        ("int | str", 1.5, "must be a whole number or a text in quotes"),
        ("Mapping[str, float]", {"a": "b"}, "must be a table"),
    ],
)
def test_does_not_fit(annotation: str, value: Any, says: str) -> None:
    assert problem(Parameter("x", annotation), value) == says


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("lr", 0, "above 0"),
        ("lr", float("nan"), "above 0"),
        ("epochs", 0, "1 or more"),
        ("momentum", 1, "below 1"),
        ("mu", -0.1, "0 or more"),
    ],
)
def test_ranges_that_every_factory_shares(name: str, value: float, says: str) -> None:
    assert says in str(problem(Parameter(name, "float"), value))


def test_what_the_file_can_set_and_what_is_wired() -> None:
    assert settable("int | None")
    assert settable("list[str]")
    assert not settable("Callable[[int], float]")
    assert not settable("Sequence[Tensor]")
    assert kind_of("Aggregator[Any] | None") == "aggregator"
    assert kind_of("torch.nn.Module") == "model"
    assert kind_of("float") is None
