"""What the common tests import and the source distribution lacks, and the tables in which they look models up.

Importing this module makes `tests.test_modeling_common` and its siblings importable; `register` makes a model package
that is not inside transformers known to them. Each stand-in is as small as the tests that use it allow.
"""

import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import tiny
import transformers
from conformance.sdist import common_tests
from transformers.models.auto import modeling_auto, processing_auto


SCRATCH = tempfile.TemporaryDirectory(prefix="omnifusion_hf_conformance_")
CHECKPOINTS = Path(SCRATCH.name) / "checkpoints"
IMAGE = Path(SCRATCH.name) / "image.png"


class PipelineTests:
    """Stands in for `tests/pipelines/test_pipelines_image_text_to_text.py` and `…_any_to_any.py`."""

    task: str

    def get_test_pipeline(self, model, tokenizer, processor, image_processor, dtype):
        pipe = transformers.pipeline(self.task, model=model, processor=processor, dtype=dtype, max_new_tokens=3)
        text = f"{processor.image_token} What is it?"
        return pipe, [{"images": tiny.image(seed), "text": text} for seed in range(2)]

    def run_pipeline_test(self, pipe, examples):
        (answer,) = pipe(images=examples[0]["images"], text=examples[0]["text"])
        assert answer["input_text"] == examples[0]["text"] and isinstance(answer["generated_text"], str)
        chat = [tiny.user(tiny.image(), "What is it?")]
        (answer,) = pipe(text=chat)
        assert answer["generated_text"][:-1] == chat and answer["generated_text"][-1]["role"] == "assistant"


def _module(name: str, **contents):
    sys.modules[name] = module = ModuleType(name)
    vars(module).update(contents)
    return module


def _install():
    CHECKPOINTS.joinpath("reports").mkdir(parents=True)
    CHECKPOINTS.joinpath("reports/tiny_model_summary.json").write_text("{}")
    tiny.image().save(IMAGE)
    os.environ["TRANSFORMERS_TINY_MODEL_PATH"] = str(CHECKPOINTS)
    # The common tests find transformers by their place in its tree.
    transformers.utils.direct_transformers_import = lambda *args: transformers

    _module("tests").__path__ = [str(common_tests() / "tests")]
    for package in ("exporters", "generation", "pipelines", "utils"):
        _module(f"tests.{package}").__path__ = []
    _module("tests.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
    _module("tests.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
    _module("tests.utils.test_configuration_utils", config_common_kwargs={})
    _module("fetch_hub_objects_for_ci", url_to_local_path=lambda url: str(IMAGE))
    for task, cls in {"image-text-to-text": "ImageTextToText", "any-to-any": "AnyToAny"}.items():
        name = f"tests.pipelines.test_pipelines_{task.replace('-', '_')}"
        tests = type(f"{cls}PipelineTests", (PipelineTests,), {"task": task})
        _module(name, **{tests.__name__: tests})


def register(model_type: str, base_model, generation_model, processor, image_processor):
    """Enters a package in the static tables, which `Auto….register` does not touch.

    About twenty common tests go on to the next class, that is, pass without testing, when a name is missing there.
    """
    from tests.test_pipeline_mixin import tiny_model_summary

    modeling_auto.MODEL_MAPPING_NAMES[model_type] = base_model.__name__
    modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type] = generation_model.__name__
    processing_auto.PROCESSOR_MAPPING_NAMES[model_type] = processor.__name__
    for cls in (processor, image_processor):
        setattr(transformers, cls.__name__, cls)
    classes = {"tokenizer": "PreTrainedTokenizerFast", "processor": image_processor.__name__}
    tiny_model_summary[generation_model.__name__] = {f"{kind}_classes": [name] for kind, name in classes.items()}


_install()
