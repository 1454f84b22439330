# Copyright 2026 The omnifusion_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Undocumented names of other libraries, each with its reason and the versions that it was tried on."""

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)


def known_by_class_name(model_class: type):
    """Adds the class, and every subclass of it from now on, to tables that transformers looks up by class name.

    For causal LMs only, Trainer shifts the labels that `label_smoothing_factor` smooths; the server of transformers
    looks up whether a model takes images. No Auto class adds to these tables. transformers 5.13 to 5.24.
    """

    def add(name: str):
        for names in (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES):
            names[name] = name

    def init_subclass(cls: type, **kwargs):  # FSDP2 makes subclasses, as users do
        super(model_class, cls).__init_subclass__(**kwargs)
        add(cls.__name__)

    add(model_class.__name__)
    model_class.__init_subclass__ = classmethod(init_subclass)
