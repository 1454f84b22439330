# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""The files that a saved model takes along as remote code."""

import transformers  # noqa: F401 first, since importing it imports modules of this folder (omnifusion_hf/__init__.py)
