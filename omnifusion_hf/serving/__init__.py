# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Answering other programs and people: vLLM's plug-in, an OpenAI-compatible server, a page in the browser."""
