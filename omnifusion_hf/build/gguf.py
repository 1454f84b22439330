# Copyright 2026 The omnifusion_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""GGUF files, llama.cpp's format, as LLMs: `--text FOLDER/model.gguf` or `OWNER/REPOSITORY/model.gguf`.

transformers reads weights, which it dequantises, configuration and tokenizer. It leaves out how some tokenizers split
text before BPE, which is added here.
"""

from importlib.util import find_spec
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast


# Steps before byte-level BPE by the name that the file gives them (llama.cpp, `llama_vocab_pre_type`).
PRE_TOKENIZERS = {"smollm": lambda: [pre_tokenizers.Digits(individual_digits=True)]}


def source_of(name: str | Path) -> tuple[str, dict]:
    """The first argument and the keywords of `from_pretrained` for a folder, a Hub id or a GGUF file.

    Raises `ValueError` for a GGUF file if the package gguf is missing.
    """
    path = Path(name)
    if path.suffix != ".gguf":
        return str(name), {}
    if find_spec("gguf") is None:
        raise ValueError(f"{name}: reading GGUF files needs the package gguf: pip install 'omnifusion_hf[gguf]'.")
    return str(path.parent), {"gguf_file": path.name}


def load_gguf_tokenizer(name: str | Path, file: Path | None) -> PreTrainedTokenizerFast:
    """The tokenizer of a GGUF file, which is `file` on the disk. Raises `ValueError` for a file that has none."""
    folder, options = source_of(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{name} has no tokenizer that loads: {error}") from error
    if steps := PRE_TOKENIZERS.get(pre_tokenizer_of(file)):
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps(), byte_level])
    return tokenizer


def pre_tokenizer_of(file: Path) -> str | None:
    """The name that a GGUF file gives to its pre-tokenizer."""
    from gguf import GGUFReader

    field = GGUFReader(file).fields.get("tokenizer.ggml.pre")
    return None if field is None else bytes(field.parts[-1]).decode()
