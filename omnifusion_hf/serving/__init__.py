# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Serving: the vLLM plug-in, an OpenAI-compatible server, a Gradio page."""
