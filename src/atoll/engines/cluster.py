"""The Ray cluster that an engine works on: joined, or started on this machine's loopback; and what it has room for."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from atoll.errors import ConfigError, missing_extra

_LOOPBACK = ("127.0.0.1", "::1")


def ray_package() -> Any:
    """The package `ray`.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import ray
    except ImportError:
        raise missing_extra("ray", "ray", "Ray clusters") from None
    return ray


def join(address: str | None) -> bool:
    """Connect this process to a cluster, or start one; True where `leave` has to undo it.

    A connection that there is already is used. `address` None: the cluster that the environment's RAY_ADDRESS names,
    else one of this process's own, on this machine, that listens on the loopback interface only and has no dashboard.

    Raises:
        MissingExtra: Ray is not installed.
        ConfigError: nobody answers at the address, or it refuses; or Ray is connected to another cluster already.
    """
    ray, wanted = ray_package(), address or os.environ.get("RAY_ADDRESS")
    if wanted and wanted.startswith("ray://"):
        raise ConfigError(
            f"ray address = {wanted!r}: Atoll runs on a node of the cluster, beside its object store, not through a Ray "
            "Client; start it there, with 'auto' or the head's HOST:PORT as the address"
        )
    if ray.is_initialized():
        there = ray.get_runtime_context().gcs_address
        if address not in (None, "auto", there):
            raise ConfigError(f"ray address = {address!r}: this process is connected to {there} already; ray.shutdown() first")
        return False
    if wanted:
        _connect(ray, wanted)
    else:
        _start(ray)
    return True


def leave() -> None:
    """Disconnect; a cluster that this process started ends."""
    ray_package().shutdown()


def _connect(ray: Any, address: str) -> None:
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # of many kinds, some of them Ray's own: nobody there, another version, another token
        told = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"ray address = {address!r}: can't join that cluster: {told}. Is its head running, is this machine one of its "
            "nodes, and do RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH say what they say there?"
        ) from error


def _start(ray: Any) -> None:
    """Ray resolves a node address of 127.0.0.1 to the machine's outward one, unless told that there are no clusters."""
    constants = ray._private.ray_constants
    before, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        ray.init(
            address="local",
            num_cpus=cores,
            include_dashboard=False,
            dashboard_host="127.0.0.1",
            _node_ip_address="127.0.0.1",
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    finally:
        constants.ENABLE_RAY_CLUSTER = before
    if (bound := ray.util.get_node_ip_address()) not in _LOOPBACK:
        ray.shutdown()
        raise ConfigError(
            f"Ray {ray.__version__} listens at {bound}, not on the loopback alone: start a cluster, name its address"
        )


def capacity(each: Mapping[str, float]) -> int:
    """How many workers of these resources the cluster's nodes hold when nobody else uses them."""
    alive = [node["Resources"] for node in ray_package().nodes() if node["Alive"]]
    return sum(min(int(has.get(name, 0.0) / amount + 1e-9) for name, amount in each.items() if amount) for has in alive)


def shortage(each: Mapping[str, float]) -> str:
    """What a worker wants and what there is: `each worker wants 4 CPU; the cluster has 10.0.0.1: 2 CPU, of which 1 CPU are free`.

    At most eight nodes are told one by one.
    """
    ray = ray_package()
    alive = [node for node in ray.nodes() if node["Alive"]]
    nodes = [f"{node['NodeManagerAddress']}: {_told(node['Resources'])}" for node in alive[:8]]
    more = f", and {len(alive) - 8} nodes more" if len(alive) > 8 else ""
    free = _told(ray.available_resources())
    return f"each worker wants {_told(each)}; the cluster has {'; '.join(nodes)}{more}, of which {free} are free"


def _told(resources: Mapping[str, float]) -> str:
    counted = {name: resources.get(name, 0.0) for name in ("CPU", "GPU")}
    return " and ".join(f"{amount:g} {name}" for name, amount in counted.items() if amount or name == "CPU")
