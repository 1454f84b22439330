# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Options that several commands of `omnifusion` share, and the settings of its typer applications."""

from typing import Annotated, Literal

import typer


SETTINGS = {"add_completion": False, "rich_markup_mode": None, "pretty_exceptions_enable": False}
SETTINGS |= {"context_settings": {"help_option_names": ["-h", "--help"]}}

Dtype = Literal["float32", "bfloat16", "float16"]
DtypeOption = Annotated[Dtype | None, typer.Option(help="Dtype of the written weights. Default: as stored.")]
Output = Annotated[str, typer.Option("-o", "--output", metavar="FOLDER", help="Folder to write; it must not exist.")]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other computers in.")]
Model = Annotated[str | None, typer.Option(help="Folder or Hub id. Default: the bundled 10 MB model.")]
