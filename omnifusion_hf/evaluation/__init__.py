# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Evaluation: the lmms-eval plug-in, reports beside the paper's tables, robustness, errors, groups of images."""
