"""Keys are taken from one place, in one spelling, and never from a file that others may read."""

from pathlib import Path

import pytest

from atoll.errors import ConfigError, StoreError
from atoll.store.keys import KEY, KEY_FILE, Keys

A, B = "0a" * 32, "0B" * 32


def test_a_file_of_keys_is_read_the_last_is_the_newest(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.touch(0o600)
    file.write_text(f"# of 2025\n{A}\n\n{B}  # of 2026\n")
    assert Keys.read(file).newest[1] == bytes([0x0B]) * 32
    assert Keys.from_environment({KEY_FILE: str(file)}).newest == Keys.from_environment({KEY: f"{A},{B}"}).newest  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_a_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "keys"
    file.write_text(A)
    file.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:o}.; chmod 600 "):
        Keys.read(file)


@pytest.mark.parametrize("text", ["", "#", A[:-1], A + "0", "g" * 64, f"{A} secret"])
def test_what_is_no_key_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError, match=r"ATOLL_STORE_KEY is no key: each has 64 hexadecimal digits") as told:
        Keys.from_environment({KEY: text})
    assert A not in str(told.value)
    assert "secret" not in str(told.value)


def test_two_places_at_once_are_refused() -> None:
    with pytest.raises(ConfigError, match="both set"):
        Keys.from_environment({KEY: A, KEY_FILE: "keys"})


def test_an_empty_name_is_refused_rather_than_nothing_sealed() -> None:
    with pytest.raises(ConfigError, match="is empty"):
        Keys.from_environment({KEY_FILE: ""})


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        Keys.read(tmp_path / "keys")


def test_nothing_is_sealed_where_nothing_is_set() -> None:
    assert Keys.from_environment({}) is None
