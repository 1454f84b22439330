# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""vLLM's plug-in: `vllm serve FOLDER` serves an OmniFusion folder if this package is installed (docs/serving.md).

vLLM calls `register` in each of its processes, by the entry point `vllm.general_plugins`.
"""

ARCHITECTURE = "OmniFusionForConditionalGeneration"
SERVED_BY = "omnifusion_hf.serving.vllm_model:OmniFusionForVllm"


def register():
    """Registers our classes with transformers and the serving class with vLLM; further calls have no effect."""
    from vllm import ModelRegistry

    import omnifusion_hf  # noqa: F401 registers configuration, model and processor with the Auto classes

    # By name: vLLM imports models in other processes, and this one must not initialise a device yet.
    ModelRegistry.register_model(ARCHITECTURE, SERVED_BY)
