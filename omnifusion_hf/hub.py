"""Folders for the Hub: complete or absent."""

import shutil
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged_folder(path: str | Path):
    """Yields a temporary folder beside `path` that takes its name if the block ends well, else goes."""
    path = Path(path)
    part = path.with_name(path.name + ".incomplete")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        shutil.rmtree(path, ignore_errors=True)
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
