# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Whether two things are the same: hashes of files and samples, and what differs between two sets of settings."""

import json
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

from PIL import Image


BLOCK, EVERY = 2**16, 2**22  # of files that are not text and above 64 MB, one block in 4 MB is read


def leaves(settings: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value under its dotted name; dicts and lists of dicts are gone into."""
    for name, value in settings.items():
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def differences(before: dict, now: dict) -> list[str]:
    """`NAME was … and is …` for each name whose values differ."""
    return [
        f"{name} was {_short(before.get(name))} and is {_short(now.get(name))}"
        for name in before | now
        if before.get(name) != now.get(name)
    ]


def _short(value) -> str:
    return str(value) if len(str(value)) < 60 else f"{str(value)[:60]}…"


def content_hash(files: Iterable[Path], pieces: Iterable[bytes] = ()) -> str:
    """Of files: JSON and small ones whole, of others their size, their end and one block in 64. Then of the pieces."""
    digest = blake2b(digest_size=8)
    for path in files:
        size = path.stat().st_size
        whole = size <= 2**26 or path.suffix in (".json", ".jsonl")
        digest.update(f"{size} ".encode())
        with path.open("rb") as file:
            for place in (*range(0, size, BLOCK if whole else EVERY), max(0, size - BLOCK)):
                file.seek(place)
                digest.update(file.read(BLOCK))
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def as_bytes(value) -> bytes:
    """A row or raw sample, images with their pixels or their file's content."""
    return json.dumps(value, default=_image).encode()


def _image(value) -> str:
    if isinstance(value, Path):
        return content_hash([value]) if value.is_file() else ""
    if isinstance(value, Image.Image):
        value = value.tobytes()
    return value.hex() if isinstance(value, bytes) else str(value)
