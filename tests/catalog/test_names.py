"""`from atoll import NAME` for every catalogued name; `import atoll` itself costs nothing."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import atoll
from atoll import catalog


def test_a_name_of_two_kinds_is_the_first_kinds() -> None:
    from atoll import server_opt, sgd

    assert sgd.__module__ == "atoll.local.sgd"
    assert server_opt.sgd.__module__ == "atoll.server_opt"


def test_factories_submodules_and_values() -> None:
    from atoll import Federation, cnn, fedavg, rng, synchronous

    assert (fedavg.__name__, cnn.__name__, synchronous.__name__) == ("fedavg", "cnn", "synchronous")
    assert rng.__name__ == "atoll.rng"
    assert Federation.__name__ == "Federation"
    assert {"fedavg", "sgd", "dirichlet", "Federation"} <= set(dir(atoll))


def test_what_is_not_there_says_where_to_look() -> None:
    with pytest.raises(AttributeError, match="`atoll catalog` lists"):
        _ = atoll.fedavgg
    assert not hasattr(atoll, "__wrapped__")


def test_no_catalogued_name_hides_a_submodule() -> None:
    modules = {path.stem for path in Path(atoll.__file__).parent.iterdir()}
    factories = {
        entry.name for kind in ("algorithm", "local", "dataset", "partition", "task", "model") for entry in catalog.entries(kind)
    }
    assert not modules & factories


def test_importing_atoll_costs_nothing() -> None:
    code = "import sys; before = set(sys.modules); import atoll; print(len(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 60


def test_the_version_is_the_packages() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert atoll.__version__ == project["version"]
