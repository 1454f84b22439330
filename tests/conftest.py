"""Fixtures of several test files: the bundled model, a lively tiny model, folders of parts and of a whole model."""

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pages
import pytest
import tiny
import torch
from PIL import ImageFile
from transformers import AutoModel, AutoModelForCausalLM, CLIPConfig, CLIPImageProcessor, CLIPModel
from transformers.utils import logging as transformers_logging

from omnifusion_hf import OmniFusionForConditionalGeneration, OmniFusionProcessor, inference
from omnifusion_hf.cli import main


@pytest.fixture(autouse=True)
def settings_of_other_tests_are_undone(monkeypatch):
    """lmms-eval makes Pillow take images that are cut short; commands set the level of transformers' log."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    transformers_logging.set_verbosity_warning()


OF_ASSISTED_DECODING = "Passing `generation_config` together with"  # transformers does so itself


class DeprecationsAreErrors(logging.Handler):
    """transformers logs some of its deprecations instead of warning of them."""

    def emit(self, record: logging.LogRecord):
        message = record.getMessage()
        if "deprecated" in message and not message.startswith(OF_ASSISTED_DECODING):
            raise DeprecationWarning(message)


logging.getLogger("transformers").addHandler(DeprecationsAreErrors(logging.WARNING))


@pytest.fixture(scope="session")
def demo() -> tuple[OmniFusionForConditionalGeneration, OmniFusionProcessor]:
    """The bundled model. Not to be changed."""
    return inference.load(inference.TINY)


@pytest.fixture(scope="session")
def model() -> OmniFusionForConditionalGeneration:
    """A random model with weights large enough for its answers to depend on every image. Not to be changed."""
    return tiny.model(tiny.config(text=tiny.text_config(initializer_range=0.2)))


@pytest.fixture(scope="session")
def processor(model) -> OmniFusionProcessor:
    return tiny.processor(model.config)


@pytest.fixture(scope="session")
def grid_processor(model) -> OmniFusionProcessor:
    """Several views per image, a number that depends on its shape."""
    return tiny.processor(model.config, view_strategy="grid")


@pytest.fixture(scope="session")
def model_folder(model, processor, tmp_path_factory) -> Path:
    """The lively model and its processor, saved."""
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_llm(folder: Path, add_bos: bool = False, dtype: torch.dtype = torch.float32, **changes):
    """An LLM of 400 tokens, as one downloads it."""
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(tiny.text_config(vocab_size=400, **changes)).to(dtype).save_pretrained(folder)
    tiny.llm_tokenizer(add_bos).save_pretrained(folder)


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> Path:
    """Folders of pretrained parts: every encoder family, a CLIP with both its towers, LLMs."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    for family in tiny.FAMILIES:
        AutoModel.from_config(tiny.encoder_config(family)).save_pretrained(folder / family)
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text |= {"vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2}
    two_towers = CLIPConfig(vision_config=tiny.encoder_config("clip").to_dict(), text_config=text)
    CLIPModel(two_towers).save_pretrained(folder / "two_towers")
    CLIPImageProcessor(image_mean=[0.1, 0.2, 0.3]).save_pretrained(folder / "two_towers")
    save_llm(folder / "llm")
    save_llm(folder / "llm_bos_tied", add_bos=True, tie_word_embeddings=True)
    save_llm(folder / "llm_bf16", dtype=torch.bfloat16)
    return folder


@pytest.fixture
def refused(capsys) -> Callable[..., str]:
    """Runs a command that must end with exit code 2 and one line of error; returns what that line says."""

    def run(*words) -> str:
        assert main([str(word) for word in words]) == 2
        printed = capsys.readouterr().err
        assert printed.count("omnifusion: error: ") == 1 and "Traceback" not in printed
        return printed.splitlines()[-1].partition("omnifusion: error: ")[2]

    return run


@pytest.fixture(scope="session")
def ran_page(tmp_path_factory) -> Callable[[Path], pages.Run]:
    """Runs the code of a documentation page, once however many tests look at what it left."""
    return cache(lambda page: pages.run_page(page, tmp_path_factory.mktemp(page.stem)))
