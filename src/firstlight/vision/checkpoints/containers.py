"""Checkpoint files to named tensors, without running anything that stands in them.

safetensors files hold only tensors. Torch files are pickles, programs in effect: they are read with ``weights_only``;
where a file keeps its run's settings beside the weights (fairseq, MAE, DINO), an unpickler of our own reads it, which
rebuilds tensors, puts an inert :class:`Stub` in the place of every settings object, and refuses every other name.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from firstlight.core.errors import InputError

#: Keys under which checkpoints keep their weights, in the order of MIM-Refiner's loader.
WRAPPERS = ("state_dict", "model", "teacher", "target_encoder")

_DTYPES = {
    str(value).removeprefix("torch."): value
    for value in vars(torch).values()
    if isinstance(value, torch.dtype)
}
_REBUILDERS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
#: Where settings objects come from. Stubs take their places, so that nothing of these libraries runs either.
_SETTINGS = (
    "argparse",
    "omegaconf",
    "fairseq",
    "fairseq_user_dir",
    "examples",
    "typing",
    "enum",
    "numpy",
    "pathlib",
)
_PLAIN = {
    "collections": {"defaultdict", "Counter", "deque"},
    "builtins": {
        "bool", "bytearray", "complex", "dict", "float", "frozenset", "int", "list", "object", "set", "str", "tuple",
    },
    "_codecs": {"encode"},
    "copyreg": {"_reconstructor"},
    "torch": {"device"},
}  # fmt: skip
#: Names of Python 2 that pickles of protocol 2 write.
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}


@dataclass(frozen=True, eq=False)
class Container:
    """What a checkpoint file holds.

    Attributes:
        path: The file.
        tensors: The weights by name.
        strays: Names beside them that hold no tensor.
        wrapper: Key under which they stood; None if at the top.
        settings: ``ctor_kwargs`` of MIM-Refiner's framework: the shape of the model, as plain values.
        metadata: Of a safetensors file.
    """

    path: Path
    tensors: dict[str, Tensor]
    strays: tuple[str, ...] = ()
    wrapper: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


class Stub:
    """Stands for an object that is not wanted: takes whatever a pickle gives it, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Stub:
        """Any arguments will do."""
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...

    def __setitem__(self, _: Any, __: Any) -> None: ...

    def append(self, _: Any) -> None:
        """Lists and their like get their items so."""

    def extend(self, _: Any) -> None:
        """Likewise."""

    def add(self, _: Any) -> None:
        """Likewise, of sets."""


class RefusedError(pickle.UnpicklingError):
    """A pickle asked for something that a checkpoint has no use for."""


class TensorUnpickler(pickle.Unpickler):
    """Rebuilds tensors and plain containers; everything else is a stub or refused."""

    def find_class(self, module: str, name: str) -> Any:
        """What a name of the pickle stands for.

        Raises:
            RefusedError: Neither tensors nor settings need it.
        """
        module = _RENAMED.get(module, module)
        if module == "torch._utils" and name in _REBUILDERS:
            # a function of our own, made anew: a pickle can change attributes of what it is given
            return lambda *arguments: getattr(torch._utils, name)(*arguments)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch", "Size"):
            return lambda *arguments: torch.Size(*arguments)
        if module.split(".")[0] in _SETTINGS or name in _PLAIN.get(module, ()):
            return type(name.rpartition(".")[2], (Stub,), {})
        raise RefusedError(f"{module}.{name}")


def read_container(path: Path) -> Container:
    """Read a checkpoint file and find the weights in it.

    Args:
        path: A ``.safetensors`` file or one of ``torch.save``.

    Raises:
        InputError: It cannot be read, it wants to run something, or it holds no weights.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return Container(path, tensors, metadata=file.metadata() or {})
        return _unwrap(path, _load(path))
    except RefusedError as error:
        raise InputError(
            f"the file asks for {error}, which weights have no use for: it is refused",
            path=path,
            hint="if you trust it, load it yourself and save its state_dict with safetensors",
        ) from error
    except InputError:
        raise
    except MemoryError as error:
        # of a whole file on a full machine, or of a torn one that asks for petabytes
        raise InputError(
            f"there is not enough memory to read this file of {path.stat().st_size:,} bytes",
            path=path,
            hint="free some memory; a file that is small for what it asks is torn: fetch it again",
        ) from error
    except (OSError, SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"no readable checkpoint ({_first_line(error)})", path=path) from error
    except (
        Exception
    ) as error:  # torn files make readers raise nearly anything, from BadZipFile to OverflowError
        raise InputError(
            f"no readable checkpoint (torn, or no checkpoint: {_first_line(error)})", path=path
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _load(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(Path(name).name == "constants.pkl" for name in archive.namelist()):
                raise RefusedError("a TorchScript program")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old storage classes
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, UnicodeDecodeError):
            reader = ModuleType("tensors_and_stubs")  # in the place of the module pickle
            vars(reader).update(Unpickler=TensorUnpickler, load=_load_one)
            return torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader)


def _load_one(file: Any, **options: Any) -> Any:
    """``pickle.load`` for the numbers that files of torch before 1.6 open with."""
    return TensorUnpickler(file, **options).load()


def _unwrap(path: Path, content: Any) -> Container:
    if not isinstance(content, Mapping):
        raise InputError(f"the file holds a {type(content).__name__}, not a dictionary of weights", path=path)
    settings = content.get("ctor_kwargs")
    for wrapper in (*WRAPPERS, None):
        inside = content if wrapper is None else content.get(wrapper)
        if not isinstance(inside, Mapping):
            continue
        tensors = {str(name): value.detach() for name, value in inside.items() if isinstance(value, Tensor)}
        if tensors:
            strays = tuple(str(name) for name, value in inside.items() if not isinstance(value, Tensor))
            known = settings if wrapper is not None and isinstance(settings, Mapping) else {}
            return Container(path, tensors, strays, wrapper, dict(known))
    raise InputError(
        f"the file holds no weights (its keys: {', '.join(map(str, list(content)[:8])) or 'none'})",
        path=path,
        hint=f"weights are looked for at the top and under {', '.join(WRAPPERS)}",
    )
