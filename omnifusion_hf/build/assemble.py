# Copyright 2026 The omnifusion_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Pretrained encoders and a pretrained LLM to one model whose adapter and special tokens are untrained.

The parts keep their weights bit for bit, and the model answers text exactly as its LLM does; an LLM for which that is
not possible raises `ValueError`.
"""

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
)
from transformers.modeling_utils import PreTrainedModel

from ..model.configuration_omnifusion import SPECIAL_TOKENS, OmniFusionConfig, OmniFusionVisionConfig
from ..model.image_processing_omnifusion import OmniFusionImageProcessor
from ..model.modeling_omnifusion_vision import trim_encoder
from ..model.processing_omnifusion import OmniFusionProcessor
from .chat_template import chat_template_for
from .check_llm import CURE, check_answers, check_family, check_head
from .gguf import source_of
from .tokenization import add_special_tokens, load_tokenizer


def assemble(cls: type, vision: list[str], text: str, dtype: torch.dtype | str, **config) -> PreTrainedModel:
    """A `cls` from pretrained parts; arguments and result as in `cls.from_vision_text_pretrained`."""
    tokenizer = add_special_tokens(load_tokenizer(text))
    model_config = assemble_config(vision, text, tokenizer, **config)
    llm = load_llm(text, model_config.text_config.vocab_size, dtype)
    is_tied = llm.get_output_embeddings().weight is llm.get_input_embeddings().weight
    model_config.tie_word_embeddings = llm.config.get_text_config().tie_word_embeddings = is_tied
    model_config.text_config = llm.config.get_text_config()  # one object, so that later changes reach the modules
    with torch.device("meta"):
        model = cls(model_config)
    model.model.language_model = language_part(llm, type(model.model.language_model))
    model.lm_head = llm.get_output_embeddings()
    fill_tower(model, vision, dtype)
    model.model.multi_modal_projector = model_config.projector_class(model_config).to(llm.dtype)
    model.generation_config = generation_config_for(llm.generation_config, tokenizer)
    model.tie_weights()
    model.eval()
    check_answers(model, llm)
    return model.half() if llm.dtype == torch.float16 else model


def assemble_processor(
    cls: type, vision: list[str], text: str, chat_template: str, image_options: dict, **config
) -> OmniFusionProcessor:
    """The processor of that model; arguments as in `cls.from_vision_text_pretrained`."""
    llm_tokenizer = load_tokenizer(text)
    tokenizer = add_special_tokens(llm_tokenizer)
    template = chat_template_for(llm_tokenizer, chat_template)
    model_config = assemble_config(vision, text, tokenizer, **config)
    vision_config = model_config.vision_config
    size = {"height": vision_config.image_size, "width": vision_config.image_size}
    image_processor = OmniFusionImageProcessor(size=size, **vision_config.image_normalizations[0] | image_options)
    return cls(image_processor, tokenizer, model_config.image_seq_length, chat_template=template)


def assemble_config(vision: list[str], text: str, tokenizer, **config) -> OmniFusionConfig:
    """The configuration of that model.

    Args:
        vision: names or folders of vision encoders (or of two-tower models with one).
        text: name or folder of a causal language model, or of a multimodal model with one.
        tokenizer: the LLM's, with the special tokens added; the vocabulary is padded to a multiple of 64.
        config: fields of `OmniFusionConfig`; `image_sizes` and `image_normalizations` are those of its vision part.
    """
    vision_fields = {name: config.pop(name) for name in ("image_sizes", "image_normalizations") if name in config}
    folder, options = source_of(text)
    text_config = AutoConfig.from_pretrained(folder, **options).get_text_config()
    check_family(text, text_config)
    text_config.vocab_size = padded_vocab_size(max(text_config.vocab_size, len(tokenizer)))
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(getattr(tokenizer, name)) for name in SPECIAL_TOKENS}
    vision_config = assemble_vision_config(vision, **vision_fields)
    return OmniFusionConfig(vision_config=vision_config, text_config=text_config, **ids, **config)


def assemble_vision_config(vision: list[str], **fields) -> OmniFusionVisionConfig:
    """From names or folders of encoders, with the normalisation of each one's image processor, if it has one."""
    configs = [AutoConfig.from_pretrained(name) for name in vision]
    configs = [getattr(config, "vision_config", config) for config in configs]
    published = [published_normalization(name) for name in vision]
    return OmniFusionVisionConfig(encoder_configs=configs, **{"image_normalizations": published} | fields)


def published_normalization(name: str) -> dict[str, list[float]]:
    """Mean and standard deviation of an encoder's image processor; empty if it has none."""
    try:
        processor = AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError):
        return {}
    return {key: list(getattr(processor, key)) for key in ("image_mean", "image_std") if getattr(processor, key, None)}


def padded_vocab_size(rows: int) -> int:
    """The next multiple of 64, which suits matrix products and tensor parallelism."""
    return -(-rows // 64) * 64


def load_llm(text: str, vocab_size: int, dtype: torch.dtype | str) -> PreTrainedModel:
    """A causal LLM with that many vocabulary rows.

    New rows are the mean row, so unused ids are never the argmax, and tokens that are added later can be learned.
    """
    folder, options = source_of(text)
    config = AutoConfig.from_pretrained(folder, **options)
    is_text = config.get_text_config() is config
    kind = AutoModelForCausalLM if is_text else AutoModelForImageTextToText
    llm, loading = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True, **options)
    if options:  # the weights of a GGUF file are dequantised by now, but the configuration says otherwise
        del llm.config.quantization_config
    check_loaded(text, llm, loading)
    llm = causal_part(llm)
    check_head(text, llm)
    llm.resize_token_embeddings(vocab_size)
    return llm.eval()


def causal_part(model: PreTrainedModel) -> PreTrainedModel:
    """The model, or the causal LLM inside it (Llama 4)."""
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel) and part is not model]
    config = model.config.get_text_config()
    return next((part for part in parts if part.config is config and part.get_output_embeddings() is not None), model)


def language_part(llm: PreTrainedModel, kind: type[PreTrainedModel]) -> PreTrainedModel:
    """The part of an LLM, or of a multimodal model, that is before its head. Raises `ValueError` for a decoder that
    reads an encoder's states (BART)."""
    part = next((module for module in llm.modules() if type(module) is kind), None)
    if part is None:
        raise ValueError(f"a `{llm.config.model_type}` has no {kind.__name__} that could read images; {CURE}")
    return part


def fill_tower(model: PreTrainedModel, vision: list[str], dtype: torch.dtype | str):
    """Replaces the tower's encoders by the pretrained ones, without the layers above the one in use."""
    tower, vision_config = model.model.vision_tower, model.config.vision_config
    for index, (name, layer) in enumerate(zip(vision, tower.feature_layers)):
        encoder, loading = AutoModel.from_pretrained(
            name, config=vision_config.encoder_configs[index], dtype=dtype, output_loading_info=True
        )
        tower.encoders[index] = trim_encoder(encoder, layer)
        check_loaded(name, encoder, loading)
        vision_config.encoder_configs[index] = encoder.config


def check_loaded(name: str, part: PreTrainedModel, loading: dict):
    """Raises `ValueError` if a weight in use was not in the files; transformers fills it at random."""
    absent = sorted(set(loading["missing_keys"]) & part.state_dict().keys())
    if absent:
        raise ValueError(
            f"{name} lacks {len(absent)} weights of a `{part.config.model_type}` ({', '.join(absent[:3])}, …): it is "
            "incomplete, or in a layout that has to be converted first (docs/conversion.md)."
        )


def generation_config_for(llm_config: GenerationConfig, tokenizer) -> GenerationConfig:
    """The LLM's settings, with the tokenizer's EOS, the end of trained answers, as a stop and a padding token."""
    ends = llm_config.eos_token_id if llm_config.eos_token_id is not None else []
    ends = [*ends] if isinstance(ends, list) else [ends]
    llm_config.eos_token_id = list(dict.fromkeys([*ends, tokenizer.eos_token_id]))
    if llm_config.pad_token_id is None:
        llm_config.pad_token_id = tokenizer.pad_token_id
    return llm_config
