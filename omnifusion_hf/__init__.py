"""OmniFusion for Hugging Face Transformers.

`import omnifusion_hf` registers its classes with the Auto classes, whether transformers was imported before or is
imported later. It imports neither transformers nor torch: public names are loaded when they are first used.
"""

import sys
from importlib import import_module


__version__ = "0.1.0"

_MODULES = {
    "AutoModelForVision2Seq": "auto",
    "OmniFusionConfig": "model.configuration_omnifusion",
    "OmniFusionForConditionalGeneration": "model.modeling_omnifusion",
    "OmniFusionImageProcessor": "model.image_processing_omnifusion",
    "OmniFusionModel": "model.modeling_omnifusion",
    "OmniFusionPreTrainedModel": "model.modeling_omnifusion",
    "OmniFusionProcessor": "model.processing_omnifusion",
    "OmniFusionVisionConfig": "model.configuration_omnifusion",
    "OmniFusionVisionModel": "model.modeling_omnifusion_vision",
    "Projector": "model.modeling_omnifusion_projector",
    "add_special_tokens": "build.tokenization",
    "register_encoder": "model.encoder_families_omnifusion",
    "register_projector": "model.modeling_omnifusion_projector",
}
__all__ = list(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module("transformers")  # first, since importing it imports modules of this package
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


class _RegisterAfterImport:
    """A finder of `sys.meta_path` that registers the classes as soon as transformers is imported."""

    def find_spec(self, name: str, path=None, target=None):
        if name != "transformers":
            return None
        finders = [finder for finder in sys.meta_path if finder is not self]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in finders)), None)
        if spec is not None:
            spec.loader.exec_module = self._then_register(spec.loader.exec_module)
        return spec

    def _then_register(self, exec_module):
        def run(module):
            sys.meta_path.remove(self)
            exec_module(module)
            import_module(".auto", __name__)

        return run


if "transformers" in sys.modules:
    import_module(".auto", __name__)
else:
    sys.meta_path.insert(0, _RegisterAfterImport())
