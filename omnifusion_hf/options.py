# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Options that several commands of `omnifusion` share, and the settings of its typer applications."""

import re
from collections.abc import Sequence
from typing import Annotated, Literal

import typer


SETTINGS = {"add_completion": False, "rich_markup_mode": None, "pretty_exceptions_enable": False}
SETTINGS |= {"context_settings": {"help_option_names": ["-h", "--help"]}}

Strategy = Literal["whole", "grid"]
Fit = Literal["crop", "pad", "squash"]
Dtype = Literal["float32", "bfloat16", "float16"]
DtypeOption = Annotated[Dtype | None, typer.Option(help="Dtype of the written weights. Default: as stored.")]
Output = Annotated[str, typer.Option("-o", "--output", metavar="FOLDER", help="Folder to write; it must not exist.")]
ModelDtype = Annotated[
    Dtype | None, typer.Option("--dtype", help="Dtype of the model. Default: as stored; on a CPU float32.")
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, … or auto, all GPUs together. Default: a GPU if there is one.")
]
Quantization = Annotated[
    Literal["4bit", "8bit"] | None, typer.Option(help="Bits of the LLM's weights, by bitsandbytes.")
]
Attention = Annotated[
    str | None, typer.Option(help="Attention of transformers: eager, sdpa, flash_attention_2, … Default: its choice.")
]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other computers in.")]
Model = Annotated[str | None, typer.Option(help="Folder or Hub id. Default: the bundled 10 MB model.")]

# Options that take several words.
LISTS = {"--perturb", "--epsilon", "--base-model", "--dataset", "--language", "--images", "--cors"}


def repeat_options(words: Sequence[str]) -> list[str]:
    """`--perturb noise blur` as `--perturb noise --perturb blur`. Such an option without a word gets an empty one."""
    spread, option = [], None
    for index, word in enumerate(words):
        if word in LISTS:
            option = word
            if words[index + 1 : index + 2] == [] or is_option(words[index + 1]):
                spread += [word, ""]
        elif is_option(word):
            option = None
            spread.append(word)
        else:
            spread += [option, word] if option else [word]
    return spread


def is_option(word: str) -> bool:
    return re.match(r"-(?![\d.])", word) is not None
