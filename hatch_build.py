"""Run by pip when it builds or installs Atoll, in place too: the classes of the protocol's messages, from protocol.proto."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROTOCOL = "atoll/remote/protocol.proto"
MADE = ["src/atoll/remote/protocol_pb2.py", "src/atoll/remote/protocol_pb2.pyi"]  # git-ignored


class Protocol(BuildHookInterface):  # type: ignore[type-arg,misc]
    """Calls protoc, which `build-system.requires` brings in the version that pairs with the protobuf we require."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the module before the wheel is packed, or, of an editable install, in the source tree."""
        from grpc_tools import protoc

        source = Path(self.root) / "src"
        if protoc.main(["protoc", f"-I{source}", f"--python_out={source}", f"--pyi_out={source}", str(source / PROTOCOL)]):
            raise RuntimeError(f"protoc can't read {PROTOCOL}; see what it says above")
        build_data["artifacts"] += [f"/{made}" for made in MADE]
