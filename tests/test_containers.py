"""What containers are built and run from, as far as the files tell."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from atoll.job.check import check
from atoll.job.text import load

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
COMPOSE = ["compose.yml", "compose.public.yml", "compose.postgres.yml"]
DOCKERFILES = sorted(DEPLOY.glob("docker/*/Dockerfile"))


def services(name: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((DEPLOY / name).read_text())["services"]
    return found


def without_variables(text: str) -> str:
    """`${NAME:-default}` -> default."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


@pytest.mark.parametrize("name", ["compose.yml", "compose.postgres.yml"])
def test_no_service_may_more_than_it_must(name: str) -> None:
    for service, said in services(name).items():
        if "image" not in said:
            continue  # an overlay of one
        assert said["read_only"] is True, service
        assert said["cap_drop"] == ["ALL"], service
        assert said["security_opt"] == ["no-new-privileges:true"], service
        assert int(said["user"].partition(":")[0]) > 0, service
        assert {"pids_limit", "mem_limit"} <= said.keys(), service
        assert said["restart"] == "on-failure", service
        assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices"} & said.keys(), service
        assert said["networks"] == ["federation"], service
        assert not any(str(volume).startswith("/") for volume in said["volumes"]), service


@pytest.mark.parametrize("name", COMPOSE)
def test_every_image_has_a_tag_that_stays(name: str) -> None:
    for service, said in services(name).items():
        if "image" in said:
            tag = without_variables(said["image"]).rpartition(":")[2]
            assert re.match(r"\d+\.\d+", tag), f"{service}: {tag}"
            if "ATOLL_VERSION" in said["image"]:
                assert tag == VERSION


def test_sites_publish_no_port_and_have_no_way_out() -> None:
    said = yaml.safe_load((DEPLOY / "compose.yml").read_text())
    assert said["networks"] == {"federation": {"internal": True}}
    assert all("ports" not in service and "expose" not in service for service in said["services"].values())
    published = services("compose.public.yml")
    assert list(published) == ["coordinator"]
    assert [port.rpartition(":")[2] for port in published["coordinator"]["ports"]] == ["7433", "7434"]  # metrics stay inside


def test_a_stop_gives_the_drain_its_time() -> None:
    for service, said in services("compose.yml").items():
        drain_s = int(said["command"][said["command"].index("--drain-s") + 1])
        assert int(said["stop_grace_period"].removesuffix("s")) >= drain_s + 15, service
        assert said["stop_signal"] == "SIGTERM"
        assert "--insecure-loopback" not in said["command"]


def test_what_compose_asks_for_is_in_the_example_of_its_settings() -> None:
    known = set(re.findall(r"^(\w+)=", (DEPLOY / ".env.example").read_text(), re.MULTILINE))
    for name in COMPOSE:
        text = (DEPLOY / name).read_text()
        needed = set(re.findall(r"\$\{(\w+):\?", text)) | {name for name in re.findall(r"\$\{(\w+)", text) if "TOKEN" in name}
        assert needed <= known, name
    assert f"ATOLL_VERSION={VERSION}" in (DEPLOY / ".env.example").read_text()


def test_the_trials_job_is_one_and_its_sites_are_the_services() -> None:
    job = check(load(str(DEPLOY / "jobs" / "trial.toml")))
    assert set(job.sites) == services("compose.yml").keys() - {"coordinator"}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_an_image_is_built_from_a_base_that_one_can_name(path: Path) -> None:
    text = path.read_text()
    arguments = dict(re.findall(r"^ARG (\w+)=(.*)$", text, re.MULTILINE))
    bases = re.findall(r"^FROM \$\{(\w+)\}", text, re.MULTILINE)
    assert bases
    assert len(bases) == len(re.findall(r"^FROM ", text, re.MULTILINE))
    for base in bases:
        tag = arguments[base].rpartition(":")[2]
        assert re.match(r"\d+\.\d+\.\d+", tag), f"{arguments[base]} is not one version"
    assert "latest" not in text
    assert not re.search(r"https?://(?!127\.0\.0\.1)", text)  # where packages come from is a setting of the machine
    assert not re.search(r"^ADD |--privileged|chmod 777|USER root|USER 0", text, re.MULTILINE)


def test_the_base_is_pinned_and_nobodys_root() -> None:
    text = (DEPLOY / "docker" / "base" / "Dockerfile").read_text()
    assert text.count("pip install") == text.count("-c constraints.txt") == 2
    assert re.findall(r"^USER (\d+):(\d+)$", text, re.MULTILINE) == [("10001", "10001")]
    assert not re.search(r"^(ENV|ARG) .*(PASSWORD|TOKEN|SECRET)", text, re.MULTILINE)
    extras = re.findall(r"^ARG EXTRAS=(.*)$", text, re.MULTILINE)[0].split(",")
    assert set(extras) <= set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


@pytest.mark.parametrize("image", ["coordinator", "site"])
def test_an_image_says_how_it_is(image: str) -> None:
    text = (DEPLOY / "docker" / image / "Dockerfile").read_text()
    assert re.search(r"HEALTHCHECK .*\n.*9464.*/healthz", text)
    assert f"ARG BASE=atoll/base:{VERSION}" in text
    assert ("EXPOSE" in text) == (image == "coordinator")


def test_an_image_is_built_from_what_it_copies_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    copied = set[str]()
    for path in DOCKERFILES:
        for line in re.findall(r"^COPY (?!--from)(.*)$", path.read_text(), re.MULTILINE):
            copied |= {word.removeprefix("./") for word in line.split()[:-1]}
        copied |= set(re.findall(r"--mount=type=bind,source=([\w/]+)", path.read_text()))
    assert copied == let_in
    assert all((ROOT / each).exists() for each in copied)
