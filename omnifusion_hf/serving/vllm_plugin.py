# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""vLLM's plug-in: `vllm serve FOLDER` knows an OmniFusion folder where this package is installed (docs/serving.md).

vLLM calls `register` in each of its processes, by the entry point `vllm.general_plugins`.
"""

ARCHITECTURE = "OmniFusionForConditionalGeneration"
SERVED_BY = "omnifusion_hf.serving.vllm_model:OmniFusionForVllm"


def register():
    """Tells transformers of our classes and vLLM of the one that serves them; harmless when called again."""
    from vllm import ModelRegistry

    import omnifusion_hf  # noqa: F401 registers configuration, model and processor with the Auto classes

    # By name: vLLM imports models in processes of their own, this one may not touch a device yet.
    ModelRegistry.register_model(ARCHITECTURE, SERVED_BY)
