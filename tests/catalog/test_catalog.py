"""The catalog finds factories by their source alone, and docs/catalog.md says what the code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from atoll import catalog
from atoll.errors import UnknownName

SAMPLE = '''
"""A module."""
raise RuntimeError("reading a catalog must not import")

ABOUT = {"source": "a paper", "clients": 4}
TRAFFIC = {"down": 2, "up": 2.5}
COMPUTED: int = len("no literal")

def wave(local: Local[Any], lr: float = 0.5, *, names: list[str] = ["a"], mode: "int | None" = None, **rest: int) -> Algorithm[S]:
    """Waves | tides.

    More."""
    return _open()

def _open():
    raise missing_extra("notthere", "llm", "waves")

def _hidden() -> Algorithm[State]: ...
def helper(x: int) -> int: ...
class Wave:
    def method(self) -> Algorithm[State]: ...
'''


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "waves.py").write_text(SAMPLE)
    (tmp_path / "nets.py").write_text("def net(width=3) -> torch.nn.Module: ...\ndef quoted() -> 'Algorithm': ...\n")
    return tmp_path


def test_scan_reads_without_importing(sample: Path) -> None:
    found = {entry.name: entry for entry in catalog.scan(sample, "pack", {"Algorithm": "algorithm", "Module": "model"})}
    assert sorted(found) == ["net", "quoted", "wave"]
    wave = found["wave"]
    assert (wave.kind, wave.module, wave.summary) == ("algorithm", "pack.deep.waves", "Waves | tides.")
    assert wave.about == {"source": "a paper", "clients": 4}
    assert wave.traffic == {"down": 2, "up": 2.5}
    assert wave.needs == (("notthere", "llm"),)
    assert wave.parameters == (
        catalog.Parameter("local", "Local[Any]"),
        catalog.Parameter("lr", "float", 0.5, False, "0.5"),
        catalog.Parameter("names", "list[str]", ["a"], False, "['a']"),
        catalog.Parameter("mode", "'int | None'", None, False, "None"),
        catalog.Parameter("rest", "int", None, False, "", True),
    )
    assert found["net"].kind == "model"


def test_a_literal_that_is_computed_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("ABOUT = dict(a=1)\ndef f() -> Task: ...\n")
    (entry,) = catalog.scan(tmp_path, "m", {"Task": "task"})
    assert entry.about == {}


def test_about_may_be_told_apart_by_name(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("ABOUT = {'f': {'clients': 1}}\ndef f() -> Dataset: ...\ndef g() -> Dataset: ...\n")
    f, g = catalog.scan(tmp_path, "m", {"Dataset": "dataset"})
    assert (f.about, g.about) == ({"clients": 1}, {"f": {"clients": 1}})


@pytest.mark.parametrize("kind", catalog.KINDS)
def test_every_entry_says_what_it_is_and_loads(kind: str) -> None:
    for entry in catalog.entries(kind):
        assert entry.summary.endswith((".", ")")), (
            f"{entry.module}.{entry.name}: its docstring's first line is its row in the catalog"
        )
        assert entry.load().__name__ == entry.name


def test_find_offers_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'momentum'"):
        catalog.find("server_opt", "momentun")
    with pytest.raises(UnknownName, match="did you mean 'algorithm'"):
        catalog.entries("algoritm")


def test_a_plugin_joins_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tidal").mkdir()
    (tmp_path / "tidal" / "__init__.py").write_text("")
    (tmp_path / "tidal" / "opts.py").write_text(
        "from __future__ import annotations\n"
        + 'def tide(lr: float = 1.0) -> ServerOpt:\n    """Tides."""\n    return lr\ndef sgd() -> ServerOpt: ...\n'
    )
    info = tmp_path / "tidal-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tidal\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{catalog.GROUP}]\ntidal = tidal\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    catalog.refresh()
    try:
        tide = catalog.find("server_opt", "tide")
        assert (tide.module, tide.load()(2.0)) == ("tidal.opts", 2.0)
        assert catalog.find("server_opt", "sgd").module == "atoll.server_opt"  # ours keeps its meaning
    finally:
        monkeypatch.undo()
        catalog.refresh()


def test_the_page_says_what_the_code_says() -> None:
    page = Path(__file__).parents[2] / "docs" / "catalog.md"
    assert page.read_text(encoding="utf-8") == catalog.markdown(), "run: atoll catalog --markdown > docs/catalog.md"


def test_reading_the_catalog_imports_nothing_heavy() -> None:
    code = "import sys; from atoll import catalog; [catalog.entries(k) for k in catalog.KINDS]; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
