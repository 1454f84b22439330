# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Measuring a model: lmms-eval's plug-in, reports beside the paper's tables, robustness and errors."""
