"""Finds weights, reads them in pieces, renames them by tables, checks them against the model, writes safetensors.

All converters use this. Each tensor of a source is mapped, split or dropped by a [`KeyTable`]; each one of the model
is written once, in its shape ([`WrittenTensors`]). Anything else raises a `ValueError` that names the tensor.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from omnifusion_hf.io import write_whole

from .pickles import read


@dataclass(frozen=True)
class KeyTable:
    r"""Maps tensor names of a source to the model's. Source names are regular expressions for the whole name.

    keys: name -> name in the model; `\1` is the first group.
    split: name -> names of its equal parts along the first axis (query, key and value in one tensor).
    dropped: names of tensors that the model does not need.
    """

    keys: dict[str, str]
    split: dict[str, list[str]] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)

    def place(self, name: str, tensor: torch.Tensor, source: Path | str) -> list[tuple[str, torch.Tensor]]:
        """[(name in the model, tensor)], one per part; none for a dropped name. `ValueError` for an unknown one."""
        for pattern, target in self.keys.items():
            if match := re.fullmatch(pattern, name):
                return [(match.expand(target), tensor)]
        for pattern, targets in self.split.items():
            if match := re.fullmatch(pattern, name):
                parts = tensor.chunk(len(targets))  # cloned: safetensors does not write views of one storage
                return [(match.expand(target), part.clone()) for target, part in zip(targets, parts)]
        if any(re.fullmatch(pattern, name) for pattern in self.dropped):
            return []
        raise ValueError(f"{source} holds the unknown tensor `{name}`; expected names like {sorted(self.keys)}.")


@dataclass
class WrittenTensors:
    """Records the file of each written tensor; each must be written exactly once, in the expected shape."""

    expected: dict[str, tuple[int, ...]]
    written: dict[str, str] = field(default_factory=dict)

    def add(self, tensors: dict[str, torch.Tensor], file: str):
        for name, tensor in tensors.items():
            if name not in self.expected or name in self.written:
                raise ValueError(f"`{name}` is not a tensor of the model, or came twice; is this the right source?")
            if tuple(tensor.shape) != self.expected[name]:
                raise ValueError(f"`{name}` has shape {tuple(tensor.shape)}, the model expects {self.expected[name]}.")
            self.written[name] = file

    def check_complete(self):
        if missing := sorted(set(self.expected) - set(self.written)):
            raise ValueError(f"The source lacks {len(missing)} tensors, the first `{missing[0]}`; is it complete?")


def locate(source: str, *choices: list[str]) -> Path:
    """Returns a folder as it is, or downloads a Hub repository, with progress and resume.

    Each of `choices` is a list of file patterns; the first one that finds weights is used.
    """
    if Path(source).exists():
        return Path(source)
    if source.count("/") != 1 or source.startswith((".", "/")):
        raise ValueError(f"`{source}` is neither a folder nor a Hub id (owner/name); check the path.")
    from huggingface_hub import snapshot_download

    for patterns in choices:
        folder = Path(snapshot_download(source, allow_patterns=patterns))
        if any(file.suffix in (".safetensors", ".bin") for file in folder.rglob("*")):
            break
    return folder


def find_shards(folder: Path) -> list[Path]:
    """The weight files of a model folder; all files of an index must be present. Prefers safetensors to `.bin`."""
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index, single = folder / f"{stem}.{suffix}.index.json", folder / f"{stem}.{suffix}"
        if index.is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            missing = [name for name in names if not (folder / name).is_file()]
            if missing:
                raise ValueError(f"{folder} is half a download: {missing} of {len(names)} weight files are missing.")
            return [folder / name for name in names]
        if single.is_file():
            return [single]
    raise ValueError(
        f"{folder} holds no weights; expected model.safetensors, its shards with an index, or pytorch_model.bin."
    )


def shard_tensors(path: Path):
    """Yields (name, tensor) from the memory-mapped file."""
    if path.suffix != ".safetensors":
        yield from read_state_dict(path).items()
        return
    try:
        with safe_open(path, framework="pt") as shard:
            names = list(shard.keys())
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); download it again.") from error
    for name in names:
        with safe_open(path, framework="pt") as shard:  # one mapping per tensor: its pages are freed with it
            yield name, shard.get_tensor(name)


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """A pickled state dict, also one inside a training checkpoint (`{"state_dict": ..., "optimizer": ...}`)."""
    content = read(path)
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in content.values()):
        raise ValueError(f"{path} does not hold a state dict; expected names and tensors.")
    return content


def in_pieces(tensors, most_bytes: int):
    """Yields {name: tensor} of at most this many bytes together; a larger tensor is alone."""
    piece, size = {}, 0
    for name, tensor in tensors:
        if piece and size + tensor.nbytes > most_bytes:
            yield piece
            piece, size = {}, 0
        if name in piece:
            raise ValueError(f"`{name}` comes twice; is this the right source?")
        piece[name] = tensor
        size += tensor.nbytes
    yield piece


def write_weights(folder: Path, pieces, model: torch.nn.Module, dtype: torch.dtype | None):
    """Writes one safetensors file per piece, and the index; holds one piece in memory at a time.

    dtype: of the written floating-point tensors; None keeps each tensor's own.
    """
    expected = model.state_dict()
    entries = WrittenTensors({name: tuple(tensor.shape) for name, tensor in expected.items()})
    files, total = [], 0
    parameters = sum(tensor.numel() for tensor in expected.values())
    with tqdm(total=parameters, desc="weights", unit="", unit_scale=True) as progress:
        for piece in pieces:
            files.append(folder / f"{len(files) + 1:05d}.safetensors")
            entries.add(piece, files[-1].name)
            piece = {name: _cast(tensor, dtype) for name, tensor in piece.items()}
            total += sum(tensor.nbytes for tensor in piece.values())
            _save(piece, files[-1])
            progress.update(sum(tensor.numel() for tensor in piece.values()))
    entries.check_complete()
    names = {file.name: f"model-{file.stem}-of-{len(files):05d}.safetensors" for file in files}
    for file in files:
        file.rename(folder / names[file.name])
    weight_map = {name: names[file] for name, file in sorted(entries.written.items())}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_whole(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")


def _cast(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return tensor.to(dtype if dtype and tensor.is_floating_point() else tensor.dtype).contiguous()


def _save(piece: dict[str, torch.Tensor], file: Path):
    try:
        save_file(piece, file, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{file} was not written: {error}") from error
