"""Every key of a job file has its line, whatever way TOML lets it be written."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import ConfigError
from atoll.job.text import load, locate, parse

TEXT = '''# a comment with [brackets] and = signs
atoll = 1
name = "a # not a comment"   # a comment
list = [
  1, # [
  "]",
  { a = 1 },
]
"quoted key" = 1
'single.dotted' = 2
a . "b.c" . d = 3
inline = { x = 1, y = { z = 2 } }

[data]
text = """
[not.a.table]
key = 1 \\"""
"""
raw = \'\'\'C:\\'\'\'
[data.partition]
alpha = 0.3
[[transforms]]
name = "clip"
[transforms.inner]
deep = 1
[[transforms]]
name = "cast"
[ spaced . "x y" ]
k = 1
'''


def test_every_key_has_its_line() -> None:
    lines = dict(locate(TEXT))
    document = parse(TEXT)
    assert lines[("atoll",)] == 2
    assert lines[("list",)] == 4
    assert lines[("quoted key",)] == 9
    assert lines[("single.dotted",)] == 10
    assert lines[("a", "b.c", "d")] == 11
    assert document.place(("inline", "y", "z")) == "job.toml:12"
    assert lines[("data",)] == 14
    assert lines[("data", "raw")] == 19
    assert lines[("data", "partition", "alpha")] == 21
    assert lines[("transforms", 0, "name")] == 23
    assert lines[("transforms", 0, "inner", "deep")] == 25
    assert lines[("transforms", 1)] == 26
    assert lines[("transforms", 1, "name")] == 27
    assert lines[("spaced", "x y", "k")] == 29
    assert not any("not" in spot or "key" in spot for spot in lines)


def test_what_is_not_there_has_the_place_of_its_table() -> None:
    assert parse(TEXT).place(("data", "partition", "missing")) == "job.toml:20"
    assert parse("").place(("rounds",)) == "job.toml:1"


def _spots(values: Any, spot: tuple[Any, ...] = ()) -> set[tuple[Any, ...]]:
    if isinstance(values, dict):
        return {spot} | {s for key, value in values.items() for s in _spots(value, (*spot, key))}
    return {spot}


_keys = st.sampled_from(["a", "b-1", '"q r"', "'s.t'", "_u"])
_values = st.sampled_from(
    ["1", '"x#y"', "'''\n[z]\n'''", '"""a\\"""b"""', "[1,\n 2]", '"\\\\"', "1979-05-27T07:32:00Z", "[]", '[["]"]]']
)


@given(st.lists(st.tuples(_keys, _values), max_size=6, unique_by=lambda pair: pair[0]), _keys)
def test_agrees_with_tomllib_on_what_there_is(pairs: list[tuple[str, str]], table: str) -> None:
    body = "".join(f"{key} = {value}\n" for key, value in pairs)
    text = f"[{table}]\n{body}[{table}.zz.top]\n{body}"
    lines = dict(locate(text))
    assert set(lines) == _spots(tomllib.loads(text)) - {()}
    source = text.split("\n")
    for spot, line in lines.items():
        assert str(spot[-1]).split(".")[-1] in source[line - 1] or spot[-1] == "zz"


def test_overrides_take_toml_values_and_bare_words() -> None:
    sets = ["local.lr=0.5", "name=plain", 'local.tag="1"', "transforms.1.name=clip", "new.deep.key=true", "list=[1, 2]"]
    document = parse(TEXT, overrides=sets)
    values = document.values
    assert values["local"] == {"lr": 0.5, "tag": "1"}
    assert (values["name"], values["transforms"][1]["name"], values["new"]["deep"]["key"], values["list"]) == (
        "plain",
        "clip",
        True,
        [1, 2],
    )
    assert document.place(("local", "lr")) == "--set local.lr=0.5"
    assert document.place(("data", "raw")) == "job.toml:19"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("lr", "key=value"),
        ("=1", "key=value"),
        ("transforms.7.name=x", "transforms.7"),
        ("atoll.x=1", "atoll"),
        ("a..b=1", "dotted key"),
    ],
)
def test_an_override_that_fits_nowhere_is_named(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse(TEXT, overrides=[override])


@pytest.mark.parametrize(
    ("text", "line"), [("a = 1\nb = \n", 2), ("a = 1\na = 2\n", 2), ("x", 1), ('a = 1\nb = "', 2), ("[a\n", 1)]
)
def test_broken_toml_names_its_line(text: str, line: int) -> None:
    with pytest.raises(ConfigError, match=rf"^job.toml:{line}: not valid TOML"):
        parse(text)


def test_unreadable_files_are_named(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=r"nothing.toml: No such file"):
        load(tmp_path / "nothing.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        load(tmp_path / "binary.toml")
