# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""The commands: one function each, which imports what it calls, so that `--help` is fast."""
