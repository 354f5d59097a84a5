"""A run whose blobs are sealed and elsewhere: trained, resumed and read as a user would, to the bits of a plain one."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.cli.test_run import JOB, atoll

KEY = "5a" * 32


@pytest.mark.slow
def test_sealed_and_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cryptography")
    (tmp_path / "job.toml").write_text(JOB)
    atoll("run", "job.toml", cwd=tmp_path)
    keys = tmp_path / "store.key"
    keys.touch(0o600)
    keys.write_text(KEY)
    monkeypatch.setenv("ATOLL_STORE_KEY_FILE", str(keys))
    said = atoll("run", "job.toml", "--blobs", f"local://{tmp_path}/elsewhere", cwd=tmp_path)
    assert "read the model with: atoll model digits-" in said
    (run,) = (tmp_path / "elsewhere").iterdir()
    assert {path.name for path in run.iterdir()} == {"checkpoints", "model"}
    assert f"model: {tmp_path / 'out'}" in atoll("model", "last", str(tmp_path / "out"), cwd=tmp_path)
    (plain,) = (tmp_path / "runs").glob("*/model/model.safetensors")
    wanted, trained = load_file(plain), load_file(tmp_path / "out" / "model.safetensors")
    assert all((wanted[name] == trained[name]).all() for name in wanted)
    keys.write_text("00" * 32)
    assert "is sealed with the key" in atoll("model", "last", str(tmp_path / "out"), cwd=tmp_path, code=1)
    monkeypatch.delenv("ATOLL_STORE_KEY_FILE")
    assert "give it in ATOLL_STORE_KEY" in atoll("model", "last", str(tmp_path / "out"), cwd=tmp_path, code=1)
