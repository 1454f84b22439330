# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Examples of the page: images with a question, of a folder or a JSONL file."""

from pathlib import Path

from ..inference import EXAMPLES
from ..io import read_json, read_text
from .conversation import SUFFIXES


QUESTION = "Describe the image."  # of the images of a folder


def read_examples(source: str | Path | None = None) -> list[dict]:
    """Values of the question box, `{"text", "files"}`. Raises `ValueError` that names what is missing.

    Args:
        source: a folder of images, or a JSONL file of lines `{"image": PATH, "question": TEXT}` whose paths begin at
            the file's folder; default: the bundled images.
    """
    if source is None:
        return _of_rows(EXAMPLES, read_json(read_text(EXAMPLES), str(EXAMPLES)))
    source = Path(source)
    if source.is_dir():
        found = sorted(path for path in source.iterdir() if path.suffix.lower() in sum(SUFFIXES.values(), []))
        examples = [{"text": QUESTION, "files": [str(path)]} for path in found]
    elif source.is_file():
        lines = enumerate(read_text(source).splitlines(), start=1)
        examples = _of_rows(source, [read_json(line, f"{source}, line {n}") for n, line in lines if line.strip()])
    else:
        raise ValueError(f"there is no folder or file {source}; give --examples a folder of images or a JSONL file.")
    if not examples:
        raise ValueError(f"{source} has no examples; --examples takes a folder of images or a JSONL file.")
    return examples


def _of_rows(source: Path, rows: list) -> list[dict]:
    examples = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("image", "question")):
            raise ValueError(f'{source}: example {number} is {row!r:.80}, not {{"image": PATH, "question": TEXT}}.')
        path = source.parent / row["image"]
        if not path.is_file():
            raise ValueError(f"{source}: example {number}: there is no image {path}.")
        examples.append({"text": row["question"], "files": [str(path)]})
    return examples
