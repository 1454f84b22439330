# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Undocumented names of other libraries, each with the reason why nothing public serves and the versions it was tried
on. Everything else in this package uses public names.
"""


def attn_implementation(config) -> str | None:
    """The attention implementation in use. transformers has `set_attn_implementation`, but no public way to read it.

    Tried on transformers 5.13 to 5.24.
    """
    return config._attn_implementation
