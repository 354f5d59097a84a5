"""The rules of the house that a program can hold: what modules look like, and what the repository does not contain."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for path in (ROOT / "src" / "atoll").rglob("*.py") if not path.stem.endswith("_pb2"))
HEAVY = {
    "cryptography",
    "datasets",
    "matplotlib",
    "mlflow",
    "pandas",
    "peft",
    "pyarrow",
    "scipy",
    "sklearn",
    "sqlalchemy",
    "torch",
    "transformers",
}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{name(path)} has no docstring"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_is_one_idea(path: Path) -> None:
    limit = 200 if path.name == "round.py" else 350
    lines = len(path.read_text().splitlines())
    assert lines <= limit, f"{name(path)} has {lines} lines; split it along its ideas (at most {limit})"


@pytest.mark.parametrize("module", ["atoll", "atoll.types", "atoll.catalog", "atoll.job", "atoll.cli.main"])
def test_starting_imports_nothing_heavy(module: str) -> None:
    program = f"import {module}, sys; print(*sorted(sys.modules.keys() & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [], f"import {module} brings in {done.stdout.strip()}"


def files() -> list[Path]:
    """Every file of the repository, whether or not it is committed yet."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode != 0:
        pytest.skip("not a git work tree")
    return [path for path in map(ROOT.joinpath, listed.stdout.split("\0")) if path.is_file()]


def test_no_file_names_a_machine() -> None:
    places = "root", "work", r"home/\w+", r"Users/\w+"
    hosts = "pypi", "pythonhosted", "npmjs", "deb.debian", "conda.anaconda"
    wrong = re.compile(rf"(?<![\w.\-*)}}/])/({'|'.join(places)})/|\b({'|'.join(hosts)})\.(org|com)\b")
    found = []
    for path in files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue  # a picture
        found += [f"{name(path)}:{text.count(chr(10), 0, hit.start()) + 1}: {hit[0]}" for hit in wrong.finditer(text)]
    assert not found, "machine paths or registry hosts:\n" + "\n".join(found)


def test_no_file_is_data() -> None:
    large = [f"{name(path)} ({path.stat().st_size} bytes)" for path in files() if path.stat().st_size > 1_000_000]
    assert not large, f"data and models are fetched, not kept here: {large}"
