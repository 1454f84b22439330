# Copyright 2026 The omnifusion_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""GGUF files, llama.cpp's format, as LLMs: `--text FOLDER/model.gguf` or `OWNER/REPOSITORY/model.gguf`.

transformers reads weights, which it dequantises, configuration and tokenizer. How a tokenizer splits text before BPE
has a name in the file. Where transformers does not know the name, it splits as GPT-2 does, without a word.
"""

import json
from importlib.util import find_spec
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast


# Names of splits (llama.cpp, `llama_vocab_pre_type`): GPT-2's, and GPT-2's after a split into single digits.
GPT_2 = ("gpt-2", "phi-2", "mpt", "olmo", "jais")
DIGITS_AND_GPT_2 = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")


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
    """The tokenizer of a GGUF file, which is `file` on the disk.

    Raises `ValueError` for a file that has none, or one whose split of text is not known.
    """
    folder, options = source_of(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{name} has no tokenizer that loads: {error}") from error
    split = pre_tokenizer_of(file)
    if split in DIGITS_AND_GPT_2:
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    elif split not in GPT_2 and splits_as_gpt_2(tokenizer):
        how = "does not say how it splits text" if split is None else f"splits text as `{split}`"
        raise ValueError(
            f"{name} {how}, which this transformers does not know for GGUF files, so tokens would be wrong; update "
            "transformers, or use the model's own folder."
        )
    return tokenizer


def splits_as_gpt_2(tokenizer: PreTrainedTokenizerFast) -> bool:
    step = json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"] or {}
    return step.get("type") == "ByteLevel" and step.get("use_regex", True)


def pre_tokenizer_of(file: Path) -> str | None:
    """The name that a GGUF file gives to its pre-tokenizer."""
    from gguf import GGUFReader

    field = GGUFReader(file).fields.get("tokenizer.ggml.pre")
    return None if field is None else bytes(field.parts[-1]).decode()
