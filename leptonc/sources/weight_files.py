"""Which files of a model directory hold its weights: the choice that transformers' `from_pretrained` makes.

The order is that of `_get_resolved_checkpoint_files` in transformers 5.24: the file that the config names as
`transformers_weights`; model.safetensors; the shards of model.safetensors.index.json. Pickles, which come next there,
are never read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from leptonc.errors import InputError
from leptonc.sources.base import LazyTensor
from leptonc.sources.jsonfile import read_json
from leptonc.sources.safetensors_file import SafetensorsFile

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_LONGEST_NAME = 255  # bytes that a file system takes

Opened = tuple[Mapping[str, LazyTensor], tuple[Callable[[], None], ...], tuple[str, ...]]


class _Weights(Mapping[str, LazyTensor]):
    """Tensors of one or several files under one roof."""

    def __init__(self, tensors: Mapping[str, LazyTensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> LazyTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def open_weights(directory: Path, config: Mapping[str, Any]) -> Opened:
    """Opens a directory's weights; only headers are read.

    Returns:
        The tensors by name, what closes their files, and warnings for the user.

    Raises:
        InputError: there are none, they are damaged, or it is not plain which ones are the model's.
    """
    named = config.get("transformers_weights")
    if named is not None:
        if not isinstance(named, str) or not named.endswith((".safetensors", ".safetensors.index.json")):
            raise InputError(
                f"{directory}: expected `transformers_weights` in config.json to name safetensors, found {named!r:.80}"
            )
        path = beside(directory, named, "config.json")
        return (*(_shards(path) if named.endswith(".json") else _single(path)), ())
    if (directory / SINGLE).is_file():
        warnings = (_TWO_SETS,) if (directory / INDEX).is_file() else ()
        return (*_single(directory / SINGLE), warnings)
    if (directory / INDEX).is_file():
        return (*_shards(directory / INDEX), ())
    raise _no_weights(directory)


def with_steps(
    weights: Mapping[str, LazyTensor], closers: tuple[Callable[[], None], ...], folders: Mapping[int, Path]
) -> tuple[Mapping[str, LazyTensor], tuple[Callable[[], None], ...]]:
    """Adds the weights of sentence-transformers' modules to the encoder's (raises `InputError`)."""
    every = dict(weights)
    try:
        for index, folder in folders.items():
            own, more, _ = open_weights(folder, {})
            closers += more
            every |= {f"sentence.step{index}.{name}": tensor for name, tensor in own.items()}
    except InputError:
        for closer in closers:
            closer()
        raise
    return _Weights(every), closers


_TWO_SETS = (
    f"the directory has two sets of weights: {SINGLE} is taken, as transformers takes it, and the shards that {INDEX} "
    "lists are not read"
)


def beside(directory: Path, name: str, whose: str) -> Path:
    """Returns the path of a file that another one names.

    Raises:
        InputError: it is not beside it, or there is no such file.
    """
    encoded = name.encode("utf-8", "surrogatepass")  # a file may name what no text is
    if (
        Path(name).name != name
        or name in (".", "..")
        or b"\0" in encoded
        or len(encoded) > _LONGEST_NAME
        or encoded.decode("utf-8", "ignore") != name
    ):
        raise InputError(
            f"{directory / whose}: expected files beside it, found {name[:80]!r}",
            hint="put the shards into the model's directory, and their names alone into the index",
        )
    path = directory / name
    if not path.is_file():
        raise InputError(f"{directory}: expected the shard {name}, found none", hint="download it too")
    return path


def shard_names(index: Path) -> list[str]:
    """Returns the files that an index lists, in the order in which transformers reads them (raises `InputError`)."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise InputError(f"{index}: expected a weight_map of names to files")
    return sorted(set(places.values()))


def _single(path: Path) -> tuple[Mapping[str, LazyTensor], tuple[Callable[[], None], ...]]:
    file = SafetensorsFile(path)
    return _Weights(file), (file.close,)


def _shards(index: Path) -> tuple[Mapping[str, LazyTensor], tuple[Callable[[], None], ...]]:
    """All tensors of all shards: transformers reads whole files, whatever the index says of a tensor's place."""
    files: dict[str, SafetensorsFile] = {}
    places: dict[str, str] = {}
    try:
        for shard in shard_names(index):
            files[shard] = SafetensorsFile(beside(index.parent, shard, index.name))
            for name in files[shard]:
                if name in places:
                    raise InputError(
                        f"{index.parent}: expected each tensor in one shard, found {name!r} in {places[name]} and "
                        f"{shard}",
                        hint="the shards are of different models; download them again",
                    )
                places[name] = shard
        for name, shard in read_json(index)["weight_map"].items():
            if name not in places:
                raise InputError(
                    f"{index}: expected tensor {name!r} in {shard}, found it in no shard",
                    hint="the index or a shard is of another model; download them again",
                )
        if not isinstance(read_json(index).get("metadata"), dict):
            raise InputError(
                f"{index}: expected metadata, without which transformers does not read an index, found none",
                hint='add "metadata": {} to it',
            )
    except InputError:
        for file in files.values():
            file.close()
        raise
    tensors = {name: files[shard][name] for name, shard in places.items()}
    return _Weights(tensors), tuple(file.close for file in files.values())


def _no_weights(directory: Path) -> InputError:
    others = [path.name for path in sorted(directory.glob("*.safetensors"))]
    if others:
        return InputError(
            f"{directory}: expected {SINGLE} or {INDEX}, found {', '.join(others[:5])}",
            hint=f"where one of them is this model's, rename it to {SINGLE}, which is what transformers reads",
        )
    pickles = [path.name for pattern in _PICKLES for path in sorted(directory.glob(pattern))]
    if pickles:
        return InputError(
            f"{directory}: expected safetensors weights, found {pickles[0]}: pickles can run code and are never read",
            hint="convert where you trust the file: AutoModel.from_pretrained(directory).save_pretrained(directory)",
        )
    return InputError(
        f"{directory}: expected {SINGLE}, found a config.json without weights",
        hint="download the weights too, or give the hub id",
    )
