"""The tensors in a TorchScript archive, read without running any of its code.

An archive is a program: `torch.jit.load` calls the `__setstate__` methods that it brings along, which may write any
file. Here, its modules are unpickled into objects that only hold attributes, and its parameters and buffers are built
from the bytes of the archive. Of its code, only the lists of their names are read, as text.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MOST_MODULES = 100_000
"""An archive whose modules refer to one another may describe more modules than fit into memory."""
MOST_CODE = 2**24
"""Bytes of a source file, which may be compressed a thousandfold."""

_DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}
_TYPED_LISTS = {"build_intlist", "build_boollist", "build_doublelist", "build_tensorlist"}


def is_torchscript(file: Path) -> bool:
    """Whether a file is a TorchScript archive, whatever its suffix."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(file: Path) -> dict[str, Tensor]:
    """The parameters and buffers of an archive by name, on the CPU: the state dict of the module that is saved in it.

    Raises:
        ValueError: an archive that is damaged, or with a module that only its own code can restore.
    """
    with zipfile.ZipFile(file) as archive:
        return dict(_tensors(_Archive(archive)))


class _Archive:
    """The records of an archive."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        (constants,) = (name for name in archive.namelist() if name.endswith("/constants.pkl"))
        self.root = constants.removesuffix("constants.pkl")
        self.storages: dict[str, Tensor] = {}
        self.code: dict[str, str] = {}
        order = self.root + "byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("its numbers are not little-endian")

    def record(self, name: str) -> bytes:
        info = self.archive.getinfo(self.root + name)
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"its record {name} is compressed, which TorchScript does not write")
        return self.archive.read(info)

    def storage(self, key: str, dtype: torch.dtype, size: int) -> Tensor:
        """The numbers of a storage, which several tensors may share."""
        if key not in self.storages:
            content = bytearray(self.record(f"data/{key}"))
            self.storages[key] = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0).byte()
        numbers = self.storages[key].view(dtype)
        if len(numbers) != size:
            raise ValueError(f"its storage {key} should hold {size} numbers, and holds {len(numbers)}")
        return numbers

    def names(self, module: _Module) -> tuple[list[str], bool]:
        """The parameters and buffers of a module, and whether its code lists them."""
        path = f"{self.root}code/{module.place.replace('.', '/')}.py"
        if path not in self.code:
            info = self.archive.getinfo(path)
            if info.file_size > MOST_CODE:
                raise ValueError(f"its source file {path} has {info.file_size} bytes")
            self.code[path] = self.archive.read(info).decode()
        lists = re.search(
            rf"^class {re.escape(module.name)}\(Module\):\n((?:  __(?:parameters|buffers)__ = \[.*\]\n)*)",
            self.code[path],
            re.MULTILINE,
        )
        return re.findall(r'"([^"]*)"', lists[1]) if lists else [], bool(lists and lists[1])


class _Module:
    """The attributes of a module; nothing of its class is kept but the name."""

    place = name = ""
    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Builds tensors, plain values and `_Module`s; refuses every other class and function."""

    def __init__(self, stream: Any, archive: _Archive) -> None:
        super().__init__(stream)
        self.archive = archive

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return type("_Module", (_Module,), {"place": module, "name": name})
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return partial(_rebuild)
        if (module, name) == ("collections", "OrderedDict"):
            return partial(OrderedDict)
        if module == "torch.jit._pickle" and name in _TYPED_LISTS:
            return partial(list)
        if (module, name) == ("torch.jit._pickle", "restore_type_tag"):
            return partial(_first)
        raise pickle.UnpicklingError(f"it holds an object of {module}.{name}, which only its own code can restore")

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, size = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"it holds a reference of kind {kind!r}")
        return self.archive.storage(key, dtype, size)


def _rebuild(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _first(value: object, _: object) -> object:
    return value


def _tensors(archive: _Archive) -> Iterator[tuple[str, Tensor]]:
    """The names and tensors of all modules: of each module first its own, then those of the modules in it."""
    top = _Unpickler(io.BytesIO(archive.record("data.pkl")), archive).load()
    if not isinstance(top, _Module):
        raise ValueError(f"it holds a {type(top).__name__}, no module")
    remaining, count = [("", top)], 0
    while remaining:
        prefix, module = remaining.pop()
        count += 1
        if count > MOST_MODULES:
            raise ValueError(f"it describes more than {MOST_MODULES} modules")
        names, listed = archive.names(module)
        state = module.state
        if not isinstance(state, Mapping) or not all(isinstance(state.get(name), Tensor | None) for name in names):
            raise ValueError(
                f"its module '{prefix.rstrip('.')}' of class {module.name} can only be restored by the archive's own "
                "code, which is not run; where you trust it, load it yourself with torch.jit.load and save its "
                "state_dict() as a .safetensors file"
            )
        for name in names if listed else state:
            if isinstance(state[name], Tensor):
                yield prefix + name, state[name]
        inner = [(f"{prefix}{name}.", value) for name, value in state.items() if isinstance(value, _Module)]
        remaining += inner[::-1]  # the last is read first
