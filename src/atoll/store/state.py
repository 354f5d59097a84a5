"""A server's state in one file: its tensors as safetensors, its shape as JSON in that file's metadata.

A state is a nest of named tuples, tuples, lists, mappings, tensors, numbers, texts and None. The file describes
itself, so that assignments in flight come back without a pattern; where a pattern is given (what `Algorithm.init`
returns), the file must agree with it. A tree that is met twice is written once, and is one object again when read.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atoll.errors import StoreError, VersionError
from atoll.store import blob
from atoll.store.places import Place
from atoll.tree import Flat, Layout, pack
from atoll.types import Tree

_FORMAT = 1
_KEY = "atoll"


def save(state: object, path: Path | Place, *, extra: Mapping[str, Any] | None = None, durable: bool = False) -> int:
    """Write a state to `path`, whole or not at all; return the bytes written.

    `extra` (JSON) is read back by `read_extra` without the tensors. `durable`: it outlives a power cut, and damage is
    noticed. Raises StoreError where the disk is full, the folder can't be written, or the state holds something else.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = save({"w": torch.ones(2), "lr": 0.1}, folder / "state")
    >>> load(None, folder / "state")
    {'w': tensor([1., 1.]), 'lr': 0.1}
    """
    writer = _Writer()
    shape = writer.encode(state, "state")
    text = json.dumps({"format": _FORMAT, "state": shape, "extra": dict(extra or {})}, separators=(",", ":"))
    return blob.write(path, writer.tensors, {_KEY: text}, durable=durable)


def load(like: object, path: Path | Place) -> Any:
    """Read a state. `like` has the structure that is wanted; None accepts what is there.

    A None or an empty container in `like` says nothing of what may have grown in its place. Raises StoreError with
    what differs, Corrupt (a StoreError) where the file is damaged, VersionError where it is a newer Atoll's.
    """
    tensors, metadata = blob.read(path)
    reader = _Reader(tensors)
    try:
        value = reader.decode(_described(metadata, path)["state"], like, "state")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise blob.Corrupt(f"{path} is damaged: its description makes no sense ({error!r})") from error
    if reader.differences:
        more = len(reader.differences) - 3
        told = "; ".join(reader.differences[:3]) + (f"; and {more} more" if more > 0 else "")
        raise StoreError(f"{path} is of another federation: {told}. Resume with the configuration that the run was made with.")
    return value


def copy(tree: Tree) -> Tree:
    """A copy that shares no memory. A flat tree stays flat and a plain one plain, since sums over them round differently."""
    return pack(tree) if isinstance(tree, Flat) else {name: x.detach().clone() for name, x in tree.items()}


def read_extra(path: Path | Place) -> dict[str, Any]:
    """What `save` was given as `extra`."""
    return dict(_described(blob.metadata(path), path)["extra"])


def _described(metadata: Mapping[str, str], path: Path | Place) -> dict[str, Any]:
    try:
        described: dict[str, Any] = json.loads(metadata[_KEY])
        version = int(described["format"])
    except (KeyError, TypeError, ValueError) as error:
        raise blob.Corrupt(f"{path} is not a state that Atoll wrote") from error
    if version > _FORMAT:
        raise VersionError(f"{path} was written by a newer Atoll (state format {version}, not {_FORMAT}); upgrade atoll")
    return described


class _Writer:
    """Collects the distinct tensors while a state is described."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[tuple[Any, ...], str] = {}
        self._trees: dict[int, tuple[int, object]] = {}  # id -> (number, the object, kept alive so that its id stays its own)

    def encode(self, x: Any, place: str) -> Any:
        if x is None or isinstance(x, bool | str):
            return x
        if isinstance(x, int):
            return int(x)
        if isinstance(x, float):
            return {"f": _spell(float(x))}
        if isinstance(x, Tensor):
            return {"t": self._tensor(x, place)}
        if isinstance(x, bytes):
            return {"b": x.hex()}
        if isinstance(x, Mapping):
            return self._mapping(x, place)
        if isinstance(x, tuple) and hasattr(x, "_fields"):
            fields = {name: self.encode(getattr(x, name), f"{place}.{name}") for name in x._fields}
            return {"n": f"{type(x).__module__}:{type(x).__qualname__}", "v": fields}
        if isinstance(x, tuple | list):
            return {"u" if isinstance(x, tuple) else "l": [self.encode(e, f"{place}.{i}") for i, e in enumerate(x)]}
        raise StoreError(
            f"{place} is {_name(x)}, which can't be kept; "
            "a state is made of named tuples, tuples, lists, mappings, tensors, numbers, texts and None"
        )

    def _tensor(self, x: Tensor, place: str) -> str:
        blob.check(place, x)
        # Two views of the same memory are one tensor; an empty one has no memory to tell it by.
        key = (x.data_ptr(), x.dtype, x.device, tuple(x.shape), x.stride(), x.is_conj(), x.is_neg()) if x.numel() else (id(x),)
        if key not in self._names:
            name = place
            while name in self.tensors or name == "__metadata__":
                name += "'"
            self.tensors[name], self._names[key] = x, name
        return self._names[key]

    def _mapping(self, x: Mapping[Any, Any], place: str) -> Any:
        if id(x) in self._trees:
            return {"again": self._trees[id(x)][0]}
        number = len(self._trees)
        self._trees[id(x)] = (number, x)
        if isinstance(x, Flat):  # its buffer as one tensor, so that it is read into one buffer again, without a copy
            shapes = [list(shape) for shape in x.layout.shapes]
            return {"flat": self.encode(x.buffer, place), "names": list(x.layout.names), "shapes": shapes, "id": number}
        items = [[self.encode(k, f"{place}.key"), self.encode(v, f"{place}.{k}")] for k, v in x.items()]
        return {"m": items, "id": number}


class _Reader:
    """Rebuilds a state from its description, noting where it differs from what is wanted."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)
        self.differences: list[str] = []
        self._trees: dict[int, tuple[Any, Any]] = {}  # number -> (its items as described, the mapping)

    def decode(self, node: Any, like: Any, place: str) -> Any:
        if node is None or isinstance(node, bool | int | str):
            return self._checked(node, like, place)
        if "f" in node:
            return self._checked(_read(node["f"]), like, place)
        if "b" in node:
            return self._checked(bytes.fromhex(node["b"]), like, place)
        if "t" in node:
            return self._tensor(self.tensors[node["t"]], like, place)
        if "n" in node:
            return self._named(node, like, place)
        if "m" in node or "again" in node:
            return self._mapping(node, like, place)
        if "flat" in node:
            return self._flat(node, like, place)
        kind, parts = (tuple, node["u"]) if "u" in node else (list, node["l"])
        if like is not None and not (isinstance(like, kind) and not hasattr(like, "_fields")):
            return self._differs(place, _article(kind.__name__), _name(like))
        if like and len(like) != len(parts):
            return self._differs(place, f"{len(parts)} entries", f"{len(like)}")
        patterns = like or [None] * len(parts)
        return kind(self.decode(p, w, f"{place}.{i}") for i, (p, w) in enumerate(zip(parts, patterns, strict=True)))

    def _checked(self, x: Any, like: Any, place: str) -> Any:
        numbers = isinstance(x, int | float) and isinstance(like, int | float) and isinstance(x, bool) == isinstance(like, bool)
        if like is None or numbers or type(x) is type(like) or (isinstance(x, str) and isinstance(like, str)):
            return x
        return self._differs(place, _name(x), _name(like))

    def _tensor(self, x: Tensor, like: Any, place: str) -> Any:
        if like is None:
            return x
        if not isinstance(like, Tensor):
            return self._differs(place, "a tensor", _name(like))
        if (x.shape, x.dtype) != (like.shape, like.dtype):
            return self._differs(place, f"{tuple(x.shape)} {x.dtype}", f"{tuple(like.shape)} {like.dtype}")
        return x if like.device.type == "cpu" else x.to(like.device)

    def _named(self, node: Any, like: Any, place: str) -> Any:
        module, _, name = node["n"].partition(":")
        if like is not None and not (hasattr(like, "_fields") and type(like).__qualname__ == name):
            return self._differs(place, _article(name), _name(like))
        kind = type(like) if like is not None else _class(module, name, place)
        # A field that a newer Atoll gave a default need not be in the file; one that is gone may not be.
        odd = sorted(set(node["v"]) - set(kind._fields)) + sorted(set(kind._fields) - set(node["v"]) - set(kind._field_defaults))
        if odd:
            return self._differs(place, f"{_article(name)} of {', '.join(node['v'])}", ", ".join(kind._fields))
        fields = {f: self.decode(part, getattr(like, f, None), f"{place}.{f}") for f, part in node["v"].items()}
        return kind(**fields)

    def _mapping(self, node: Any, like: Any, place: str) -> Any:
        known = self._trees.get(node["again"]) if "again" in node else None
        items = known[0] if known else node["m"]
        if like is not None and not isinstance(like, Mapping):
            return self._differs(place, "a mapping", _name(like))
        keys = [self.decode(k, None, place) for k, _ in items]
        if like and set(like) != set(keys):
            odd = sorted(map(str, set(like) ^ set(keys)))
            return self._differs(place, f"{len(keys)} names", f"{len(like)}, and only one side has {', '.join(odd[:3])}")
        if known and not like:
            return known[1]
        found: Any = {k: self.decode(v, like[k] if like else None, f"{place}.{k}") for k, (_, v) in zip(keys, items, strict=True)}
        if known:
            return known[1]
        self._trees[node["id"]] = (items, found)
        return found

    def _flat(self, node: Any, like: Any, place: str) -> Any:
        layout = Layout(tuple(node["names"]), tuple(torch.Size(shape) for shape in node["shapes"]))
        buffer = self.decode(node["flat"], None, place)
        if buffer.numel() != sum(shape.numel() for shape in layout.shapes):
            raise ValueError(f"{place} does not fill its buffer")
        found = Flat(layout, buffer)
        self.tensors.update({f"{node['id']}/{name}": view for name, view in found.items()})
        self._trees[node["id"]] = ([[name, {"t": f"{node['id']}/{name}"}] for name in layout.names], found)
        return self._mapping({"again": node["id"]}, like, place)

    def _differs(self, place: str, there: str, wanted: str) -> None:
        self.differences.append(f"{place} is {there} in the file, and {wanted} here")


def _class(module: str, name: str, place: str) -> Any:
    """The named tuple of that name. A module of ours may be imported for it; anyone else's must have been already."""
    if module.startswith("atoll.") and not module.endswith("__main__"):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, tuple) and hasattr(found, "_fields")):
        raise StoreError(f"{place} is {_article(name)} of the module {module!r}, which is not there; import it first")
    return found


def _name(x: object) -> str:
    return "nothing" if x is None else _article(type(x).__name__)


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'AEIOUaeiou' else 'a'} {kind}"


def _spell(x: float) -> str:
    return x.hex() if math.isfinite(x) else "bits " + struct.pack(">d", x).hex()


def _read(text: str) -> float:
    if text.startswith("bits "):
        return float(struct.unpack(">d", bytes.fromhex(text[5:]))[0])
    return float.fromhex(text)
