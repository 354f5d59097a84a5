"""The images are built and a trial of two sites over TLS is run to its end with compose, in real containers.

It needs a Docker daemon and compose, and for the build an index of packages and a base image. Where those are a machine's own:
ATOLL_TEST_BASE_IMAGE names the image, ATOLL_TEST_WHEELS a folder of wheels, ATOLL_TEST_CA certificates to believe and
ATOLL_TEST_PIP a pip.conf, all of them for the build; with ATOLL_TEST_BUILT the images are taken as they are.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATIENCE_S = 900.0


def run(*words: str, cwd: Path, timeout_s: float = PATIENCE_S, **environment: str) -> str:
    done = subprocess.run(
        words, cwd=cwd, capture_output=True, text=True, timeout=timeout_s, env={**os.environ, **environment}, check=False
    )
    assert done.returncode == 0, f"{' '.join(words)}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture
def compose(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Compose over a copy of the repository; whatever it started is gone afterwards."""
    if not shutil.which("docker") or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no Docker daemon is reachable: NO CONTAINER WAS BUILT OR RUN")
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
    if not plugin and not shutil.which("docker-compose"):
        pytest.skip("Docker is here without compose: NO CONTAINER WAS BUILT OR RUN")
    words = ["docker", "compose"] if plugin else ["docker-compose"]
    for name in (".dockerignore", "LICENSE", "README.md", "constraints.txt", "hatch_build.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("src", "deploy", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    if wheels := os.environ.get("ATOLL_TEST_WHEELS"):
        for wheel in Path(wheels).glob("*.whl"):
            shutil.copy(wheel, tmp_path / "deploy" / "docker" / "wheels")
    folder = tmp_path / "deploy"
    project = f"atoll-test-{os.getpid()}"

    def asked(*more: str, **environment: str) -> str:
        return run(*words, "-p", project, "-f", "compose.yml", *more, cwd=folder, **environment)

    asked.folder = tmp_path  # type: ignore[attr-defined]
    yield asked
    subprocess.run([*words, "-p", project, "-f", "compose.yml", "down", "-v", "-t", "1"], cwd=folder, capture_output=True)


def build(folder: Path) -> None:
    """The three images, in their order."""
    if os.environ.get("ATOLL_TEST_BUILT"):
        return
    base = os.environ.get("ATOLL_TEST_BASE_IMAGE")
    more = ["--build-arg", f"BASE_IMAGE={base}"] if base else []
    for secret in ("ca", "pip"):
        if path := os.environ.get(f"ATOLL_TEST_{secret.upper()}"):
            more += ["--secret", f"id={secret},src={path}"]
    for image in ("base", "coordinator", "site"):
        words = ["docker", "build", *(more if image == "base" else []), "-f", f"deploy/docker/{image}/Dockerfile"]
        run(*words, "-t", f"atoll/{image}:0.1.0", ".", cwd=folder, timeout_s=1800, DOCKER_BUILDKIT="1")


def token(compose: Callable[..., str], site: str) -> str:
    said = compose("run", "--rm", "-T", "coordinator", "pki", "token", site, "--pki", "/var/lib/atoll/pki")
    found = re.search(r"--token (\S+)", said)
    assert found, said
    return found[1]


ASK = "import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', 9464, timeout=5); c.request('GET', sys.argv[1]); "
ASK += "a = c.getresponse(); print(a.status, a.read().decode())"


def inside(compose: Callable[..., str], service: str, path: str) -> str:
    return compose("exec", "-T", service, "/opt/atoll/bin/python", "-c", ASK, path)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_two_sites_train_over_tls(compose: Callable[..., str]) -> None:
    folder: Path = compose.folder  # type: ignore[attr-defined]
    build(folder)
    job = folder / "deploy" / "jobs" / "trial.toml"
    job.write_text(job.read_text().replace("rounds = 5", "rounds = 200"))  # so that there is time to ask and to stop
    os.chmod(job, 0o644)
    pki = ["pki", "init", "/var/lib/atoll/pki", "--name", "trial.example", "--host", "coordinator"]
    compose("run", "--rm", "-T", "coordinator", *pki)
    tokens = {f"{site.upper()}_TOKEN": token(compose, site) for site in ("north", "south")}
    compose("up", "-d", **tokens)
    ends_s = time.monotonic() + PATIENCE_S
    while '"event": "round"' not in (said := compose("logs", "--no-color", "coordinator")):
        assert time.monotonic() < ends_s, said + compose("logs", "--no-color")
        time.sleep(1.0)
    assert inside(compose, "coordinator", "/readyz").startswith("200 ok")
    assert inside(compose, "north", "/readyz").startswith("200 ok")
    numbers = inside(compose, "coordinator", "/metrics")
    assert "\natoll_sites_online 2.0\n" in numbers
    assert re.search(r'\natoll_rounds_total\{job="trial"\} [1-9]', numbers)
    held = {each: inspected(compose, each) for each in ("coordinator", "north", "south")}
    for name, each in held.items():
        assert each["HostConfig"]["ReadonlyRootfs"] is True, name
        assert each["HostConfig"]["CapDrop"] == ["ALL"], name
        assert each["Config"]["User"] == "10001:10001", name
        assert not each["HostConfig"]["PortBindings"], name
    compose("stop", "coordinator")  # drains: the round that is open ends, and it goes on from there
    assert inspected(compose, "coordinator")["State"]["ExitCode"] == 143
    compose("start", "coordinator")
    while (state := inspected(compose, "coordinator")["State"])["Status"] != "exited":
        assert time.monotonic() < ends_s + PATIENCE_S, compose("logs", "--no-color")
        time.sleep(1.0)
    assert state["ExitCode"] == 0, compose("logs", "--no-color", "coordinator")
    said = compose("logs", "--no-color", "coordinator")
    assert '"message": "round 200/200"' in said
    assert '"event": "resumed"' in said
    look = "import pathlib, sys; print(*pathlib.Path('/var/lib/atoll/runs').glob('*/model/model.safetensors'))"
    found = compose("run", "--rm", "-T", "--entrypoint", "/opt/atoll/bin/python", "coordinator", "-c", look)
    assert found.count("model.safetensors") == 1
    assert inspected(compose, "north")["State"]["Health"]["Status"] == "healthy"
    compose("stop", "north", "south")
    assert [inspected(compose, site)["State"]["ExitCode"] for site in ("north", "south")] == [143, 143]


def inspected(compose: Callable[..., str], service: str) -> dict[str, dict[str, object]]:
    (each,) = [line for line in compose("ps", "-a", "-q", service).split() if line]
    found = json.loads(run("docker", "inspect", each, cwd=Path.cwd()))[0]
    return dict(found)
