"""What is written as TOML reads back as itself, by the standard library's reader."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from atoll.report.toml import document
from tests.report.synthetic import CONFIG

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
LEAF = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXT
VALUE = st.recursive(LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=12)


@given(st.dictionaries(TEXT, VALUE, max_size=5))
def test_a_document_reads_back(config: dict[str, Any]) -> None:
    assert tomllib.loads(document(config)) == config


def test_none_is_left_out_everywhere() -> None:
    assert tomllib.loads(document({"a": None, "b": {"c": None, "d": [1, None, {"e": None}]}})) == {"b": {"d": [1, {}]}}


def test_a_job_reads_as_a_person_writes_it() -> None:
    lines = document(CONFIG).splitlines()
    assert lines[:4] == ["atoll = 1", 'name = "shakespeare-lora"', "seed = 7", "rounds = 20"]
    assert "[task.adapter]" in lines
    assert lines.count("[[transforms]]") == 2
