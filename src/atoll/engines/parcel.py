"""What goes to Ray's workers and comes back: folds and data as one object a node, trees as one buffer each.

Ray maps the large buffers of an object into every worker of a node that reads it, so that they are held once a node.
"""

from __future__ import annotations

import io
import pickle  # within one Ray cluster, which is one trust domain; never across a trust boundary
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from atoll import tree
from atoll.data.examples import Tensors
from atoll.errors import ConfigError
from atoll.types import Tree

_ALIGN = 64
_SMALL_BYTES = 1 << 16  # below it, a copy a worker costs less than a buffer of its own


class Parcel(NamedTuple):
    """A pickle, and beside it the memory of its large tensors."""

    body: bytes
    buffers: list[Any]  # numpy arrays, uint8


class Packed(NamedTuple):
    """A tree as one buffer."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    flat: bool  # one dtype, no gaps: it is read as a `tree.Flat`
    data: Any  # numpy array, uint8


def wrap(thing: Any) -> Parcel:
    """Anything that holds folds, modules and examples, for `unwrap` in another process.

    The columns of `Tensors` and frozen parameters are shared by who unwraps them, since nobody writes to them; all
    other tensors are copied. Tensors that share memory do so afterwards.

    Raises:
        ConfigError: something in it can't be pickled.
        ImportError: Ray, whose pickler of closures this is, is not installed.
    """
    file, buffers = io.BytesIO(), list[Any]()
    pickler = _pickler()(file, protocol=5, buffer_callback=lambda b: buffers.append(np.frombuffer(b.raw(), np.uint8)))
    try:
        pickler.dump(thing)
    except (pickle.PicklingError, TypeError, AttributeError, NotImplementedError, RuntimeError) as error:
        told = str(error).partition("\n")[0]
        raise ConfigError(
            f"the Ray engine sends the task, the local work and the data to its workers, and something in them can't be "
            f"pickled ({told}): open files and connections where they are used, or take the engine 'processes'"
        ) from error
    return Parcel(file.getvalue(), buffers)


def unwrap(parcel: Parcel) -> Any:
    """What was wrapped; its shared tensors lie in the parcel's buffers, which may be read-only."""
    return pickle.loads(parcel.body, buffers=parcel.buffers)


def pack(values: Tree) -> Packed:
    """A tree as one buffer: without a copy where it is a `tree.Flat`.

    >>> unpack(pack({"w": torch.ones(2), "n": torch.tensor(3)}))
    {'w': tensor([1., 1.]), 'n': tensor(3)}
    """
    names, shapes = tuple(values), tuple(tuple(x.shape) for x in values.values())
    dtypes = tuple(x.dtype for x in values.values())
    if isinstance(values, tree.Flat) and values.buffer.device.type == "cpu":
        return Packed(names, shapes, (values.buffer.dtype,), True, _bytes(values.buffer).numpy())
    data, at = torch.zeros(sum(_padded(x) for x in values.values()), dtype=torch.uint8), 0
    for x in values.values():
        part = _bytes(x)
        data[at : at + len(part)] = part
        at += _padded(x)
    return Packed(names, shapes, dtypes, False, data.numpy())


def unpack(packed: Packed) -> Tree:
    """The tree, as views of the buffer: to be read, not written."""
    data = _tensor_over(packed.data)
    if packed.flat:
        layout = tree.Layout(packed.names, tuple(torch.Size(s) for s in packed.shapes))
        return tree.Flat(layout, data.view(packed.dtypes[0]))
    found, at = dict[str, Tensor](), 0
    for name, shape, dtype in zip(packed.names, packed.shapes, packed.dtypes, strict=True):
        size_bytes = torch.Size(shape).numel() * dtype.itemsize
        found[name] = data[at : at + size_bytes].view(dtype).view(shape)
        at += -(-size_bytes // _ALIGN) * _ALIGN
    return found


def _bytes(x: Tensor) -> Tensor:
    return x.detach().cpu().contiguous().view(-1).view(torch.uint8)


def _padded(x: Tensor) -> int:
    return -(-x.numel() * x.element_size() // _ALIGN) * _ALIGN


def _tensor_over(data: Any) -> Tensor:
    if not len(data):
        return torch.empty(0, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the memory is read-only: nobody writes to it
        return torch.from_numpy(np.frombuffer(data, np.uint8))


class _Memory:
    """The memory that one or more tensors view: pickled once, whatever the number of its views."""

    def __init__(self, storage: torch.UntypedStorage, shared: bool) -> None:
        self._storage, self._shared = storage, shared

    def __reduce_ex__(self, protocol: Any) -> Any:
        data: Any = torch.empty(0, dtype=torch.uint8).set_(self._storage).numpy()
        if data.nbytes < _SMALL_BYTES:
            return _storage, (data.tobytes(), False)
        return _storage, (pickle.PickleBuffer(data), self._shared)


def _storage(data: Any, shared: bool) -> torch.UntypedStorage:
    found = _tensor_over(data)
    return (found if shared else found.clone()).untyped_storage()


def _tensor(
    storage: torch.UntypedStorage, dtype: torch.dtype, at: int, shape: torch.Size, stride: tuple[int, ...], grad: bool
) -> Tensor:
    found: Tensor = torch.empty(0, dtype=dtype).set_(storage, at, shape, stride)
    return found.requires_grad_(grad)


def _pickler() -> Any:
    """The class of the pickler: Ray's, which takes closures, and the memory of tensors beside the pickle."""
    from ray.cloudpickle import CloudPickler

    class Pickler(CloudPickler):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._seen: dict[int, _Memory] = {}
            self._read_only: set[int] = set()

        def reducer_override(self, thing: Any) -> Any:
            if isinstance(thing, Tensors):
                self._read_only |= {_at(x) for x in thing.columns.values()}
            elif isinstance(thing, nn.Parameter) and not thing.requires_grad:
                self._read_only.add(_at(thing))
            if type(thing) is not Tensor or not _plain(thing):
                return super().reducer_override(thing)
            memory = self._seen.setdefault(_at(thing), _Memory(thing.untyped_storage(), _at(thing) in self._read_only))
            placed = (memory, thing.dtype, thing.storage_offset(), thing.shape, thing.stride(), thing.requires_grad)
            return _tensor, placed

    return Pickler


def _plain(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.layout is torch.strided and not (x.is_quantized or x.is_conj() or x.is_neg())


def _at(x: Tensor) -> int:
    return x.untyped_storage()._cdata if _plain(x) else 0
