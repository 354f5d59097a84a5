"""Every code block of README.md, CONTRIBUTING.md and docs/ runs, by this rule:

- `python`: run, the blocks of a document one after another in one namespace, in a folder that holds nothing but a copy
  of examples/. With `>>>` the answers are compared.
- `toml`: must parse; one that starts with `atoll = 1` is a job, and `atoll check` must accept it.
- `console`: each `$ atoll ...` is run in that folder and must exit with 0, or, when it ends in `# fails`, must not; then
  the lines shown below it must be in what it says. Of `$ make x` and `$ pip install 'atoll[x]'` only the name x is checked.
- A `python` or `toml` block whose first line is a comment with a file's name, `# job.toml`, is put there as well.
- `text`, `json`, `mermaid`: not code. Any other language is an error.
- `<!-- not run: REASON -->` on the line before a block leaves it out. Such blocks are counted, and must stay few.

The examples in docstrings run through pytest's `--doctest-modules`.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sybil import Document, Example
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from sybil.typing import Parser

ROOT = Path(__file__).parents[1]
DOCUMENTS = [path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))) if path.exists()]
RUN = ("python", "toml", "console")
SHOWN = ("text", "json", "mermaid")
ATOLL = [sys.executable, "-c", "import sys; sys.argv[0] = 'atoll'; from atoll.cli.main import app; app()"]

_FENCE = re.compile(r"^[ \t]*```[ \t]*(\S+)?[^\n]*\n.*?^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!--\s*not run:(?P<reason>[^>]*)-->\s*\Z")
_NAMED = re.compile(r"#\s*(?P<name>[\w./-]+\.(py|toml))\s*\n")


def reason_not_to_run(text: str, start: int) -> str | None:
    """What the comment just before the block at `start` says, or None."""
    found = _NOT_RUN.search(text[:start].rstrip(" \t"))
    return found["reason"].strip() if found else None


def put_where_named(evaluate: Callable[[Example], str | None]) -> Callable[[Example], str | None]:
    """The evaluator, for blocks that may name their file."""

    def evaluator(example: Example) -> str | None:
        if named := _NAMED.match(example.parsed):
            Path(named["name"]).parent.mkdir(parents=True, exist_ok=True)
            Path(named["name"]).write_text(example.parsed)
        return evaluate(example)

    return evaluator


def toml(example: Example) -> None:
    """A job is accepted by `atoll check`; anything else is at least TOML."""
    tomllib.loads(example.parsed)
    lines = [line for line in example.parsed.splitlines() if line.strip() and not line.startswith("#")]
    if lines and re.fullmatch(r"atoll\s*=\s*1\b.*", lines[0]):
        job = Path("block.toml")
        job.write_text(example.parsed)
        console_command(f"atoll check {job}", [])


def console(example: Example) -> None:
    """The commands of a block, each with the lines shown below it."""
    source = example.parsed.replace("\\\n", " ")
    for command, shown in commands(source):
        console_command(command, shown)


def commands(source: str) -> Iterator[tuple[str, list[str]]]:
    """(command, the lines below it) of a console block."""
    parts = re.split(r"^\$ ", source, flags=re.MULTILINE)
    assert not parts[0].strip(), f"a console block starts with a command, '$ ...', not with {parts[0].splitlines()[0]!r}"
    for part in parts[1:]:
        command, *shown = part.splitlines()
        yield command.strip(), [" ".join(line.split()) for line in shown if line.strip()]


def console_command(command: str, shown: list[str]) -> None:
    """Run `atoll ...`, check the names that `make` and `pip` are given, refuse the rest."""
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        wrong = {word for word in words[1:] if "=" not in word} - targets
        assert not wrong, f"{command!r}: the Makefile has no target {wrong}"
    elif words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        asked = {extra.strip() for group in re.findall(r"\[([^]]*)\]", command) for extra in group.split(",")}
        assert asked <= set(extras), f"{command!r}: there is no extra {asked - set(extras)}"
    else:
        assert words[0] == "atoll", f"{command!r} is none of atoll, make and pip: mark the block `<!-- not run: REASON -->`"
        environment = {**os.environ, "COLUMNS": "200", "TERM": "dumb"}
        done = subprocess.run([*ATOLL, *words[1:]], capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)
        fails = command.endswith("# fails")
        said = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, f"{command!r} exited with {done.returncode}:\n{said}"
        if fails:
            flat = " ".join(said.split())
            missing = [line for line in shown if line not in flat]
            assert not missing, f"{command!r} does not say {missing}, but:\n{said}"


PYTHON = PythonCodeBlockParser()
PYTHON.codeblock_parser = CodeBlockParser("python", put_where_named(PythonEvaluator()))
PARSERS: list[Parser] = [PYTHON, CodeBlockParser("toml", put_where_named(toml)), CodeBlockParser("console", console)]


def without_marked(text: str) -> str:
    """The text with the blocks that are not to be run blanked out; lines keep their numbers."""

    def blank(block: re.Match[str]) -> str:
        return block[0] if reason_not_to_run(text, block.start()) is None else re.sub(r"[^\n]", " ", block[0])

    return _FENCE.sub(blank, text)


def run(path: Path) -> int:
    """Run a document's blocks in the current folder; how many there were."""
    document = Document(without_marked(path.read_text()), str(path))
    for parser in PARSERS:
        for region in parser(document):
            document.add(region)
    count = 0
    for example in document:
        count += 1
        try:
            example.evaluate()
        except Exception as error:
            error.add_note(f"in the block at {path.name}:{example.line}")
            raise
    return count


@pytest.mark.slow
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_blocks_run(path: Path, tmp_path: Path) -> None:
    if (ROOT / "examples").exists():
        shutil.copytree(ROOT / "examples", tmp_path / "examples")
    run(path)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_block_has_a_known_language(path: Path) -> None:
    text = path.read_text()
    for block in _FENCE.finditer(text):
        line = text.count("\n", 0, block.start()) + 1
        assert block[1] in (*RUN, *SHOWN), f"{path.name}:{line}: ```{block[1]} is none of {', '.join(RUN + SHOWN)}"
        reason = reason_not_to_run(text, block.start())
        assert reason is None or len(reason.split()) >= 3, f"{path.name}:{line}: say why the block is not run"


def test_few_blocks_are_left_out() -> None:
    blocks = [(path, block) for path in DOCUMENTS for block in _FENCE.finditer(path.read_text()) if block[1] in RUN]
    left_out = [path.name for path, block in blocks if reason_not_to_run(path.read_text(), block.start()) is not None]
    assert len(left_out) <= len(blocks) / 4, f"{len(left_out)} of {len(blocks)} blocks are marked `not run`: {left_out}"


# The harness itself: that what should fail does.


def document(folder: Path, *blocks: str) -> Path:
    path = folder / "page.md"
    path.write_text("# A page\n\n" + "\n\n".join(blocks) + "\n")
    return path


def test_blocks_share_a_namespace_and_files(tmp_path: Path) -> None:
    page = document(
        tmp_path,
        "```python\nx = 2\n```",
        "<!-- not run: it would fail here -->\n```python\n1 / 0\n```",
        "<!-- not run: it would fail here -->\n```python\n>>> 1 / 0\n2\n```",
        "```python\n>>> x + 1\n3\n```",
        "```python\n# here/own.py\nname = 'own'\n```",
        "```python\nfrom pathlib import Path\nassert 'own' in Path('here/own.py').read_text()\n```",
        "```toml\na = 1\n```",
        "```console\n$ make check WORKERS=1\n$ pip install 'atoll[llm,data]'\n```",
    )
    assert run(page) == 6


@pytest.mark.parametrize(
    "block",
    [
        "```python\n1 / 0\n```",
        "```python\n>>> 1 + 1\n3\n```",
        "```toml\na = \n```",
        "```console\n$ make nothing-of-this-name\n```",
        "```console\n$ pip install 'atoll[nothing]'\n```",
        "```console\n$ ls\n```",
        "```console\natoll catalog\n```",
    ],
)
def test_a_block_that_is_wrong_fails(block: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r".") as raised:
        run(document(tmp_path, block))
    assert "in the block at page.md:" in str(getattr(raised.value, "__notes__", ""))


@pytest.mark.slow
def test_a_command_that_is_wrong_fails(tmp_path: Path) -> None:
    run(document(tmp_path, "```console\n$ atoll --help\n$ atoll check absent.toml  # fails\n```"))
    for wrong in (
        "$ atoll check absent.toml",
        "$ atoll --help  # fails",
        "$ atoll check absent.toml  # fails\nall is well with it",
    ):
        with pytest.raises(AssertionError):
            run(document(tmp_path, f"```console\n{wrong}\n```"))


@pytest.mark.slow
def test_a_job_that_is_wrong_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no_such_table"):
        run(document(tmp_path, "```toml\natoll = 1\n\n[no_such_table]\nx = 1\n```"))
