# Copyright 2026 The omnifusion_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Changes to `generate()`: suppressed tokens, n-gram ban without the prompt, images encoded once for each sample.

Provenance: transformers' `GenerationMixin`; the n-gram ban over the answer only is that of the authors' release v1.1.
"""

import copy
from functools import wraps

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.generation import GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import NoRepeatNGramLogitsProcessor, SuppressTokensLogitsProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.auto import modeling_auto


class SuppressSpecialTokens(SuppressTokensLogitsProcessor):
    """A class of its own, because a processor that is passed replaces transformers' own one of the same class."""


class NoRepeatNGramInAnswer(LogitsProcessor):
    """The n-gram ban over generated tokens only."""

    def __init__(self, ngram_size: int, prompt_length: int):
        self.ban, self.prompt_length = NoRepeatNGramLogitsProcessor(ngram_size), prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        return self.ban(input_ids[:, self.prompt_length :], scores)


class OmniFusionGenerationMixin(GenerationMixin):
    """`generate()` of a model with `get_image_features`."""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # Tables by class name: Trainer shifts smoothed labels of causal LMs only, and the server of transformers gives
        # images to multimodal models only. FSDP2 makes subclasses, as users do.
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[cls.__name__] = cls.__name__
        modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES[cls.__name__] = cls.__name__

    def generate(
        self,
        inputs: torch.LongTensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        **kwargs,
    ):
        """As transformers' own. With a kept cache, images are those of the whole conversation or only the new ones.
        `no_repeat_ngram_in_prompt=False` in the generation configuration (v1.1) limits the n-gram ban to the answer.
        """
        input_ids = kwargs.get("input_ids") if inputs is None else inputs
        processors = [SuppressSpecialTokens(self.config.special_token_ids)]  # which moves to the scores
        ngram_size = self._setting("no_repeat_ngram_size", generation_config, kwargs)
        if ngram_size and self._setting("no_repeat_ngram_in_prompt", generation_config, kwargs) is False:
            processors.append(NoRepeatNGramInAnswer(ngram_size, 0 if input_ids is None else input_ids.shape[1]))
            if generation_config is None:
                kwargs["no_repeat_ngram_size"] = 0
            else:  # transformers takes a configuration or arguments
                generation_config = copy.deepcopy(generation_config)
                generation_config.no_repeat_ngram_size = 0
        if input_ids is not None or kwargs.get("inputs_embeds") is not None:
            kwargs |= self._images_for_generation(input_ids, generation_config, kwargs)
        processors = LogitsProcessorList([*processors, *(logits_processor or [])])
        return super().generate(inputs, generation_config, processors, **kwargs)

    def _setting(self, name: str, generation_config: GenerationConfig | None, kwargs: dict):
        """The value for this call: of an argument, else of the configuration that was passed, else of the model's."""
        given = (kwargs.get(name), getattr(generation_config, name, None), getattr(self.generation_config, name, None))
        return next((value for value in given if value is not None), None)

    @torch.no_grad()
    def _images_for_generation(self, input_ids: torch.LongTensor | None, config, kwargs: dict) -> dict:
        """The images in `kwargs`, which are taken out, as one row of visual tokens per sample, which `generate()` can
        repeat: those for the places after a kept cache. Raises `ValueError` for a wrong number."""
        names = ("pixel_values", "image_view_index", "mm_encoder_outputs")
        pixel_values, image_view_index, outputs = (kwargs.pop(name, None) for name in names)
        outputs = (outputs or {}).get("image")
        embeddings = kwargs.get("inputs_embeds")
        is_image = self.model.image_places(input_ids if embeddings is None else None, embeddings)
        cached, mask = _cached_length(kwargs), kwargs.get("attention_mask")
        if mask is not None:  # of the whole conversation, also if only its new part was passed
            cached = max(0, cached - (mask.shape[1] - is_image.shape[1]))
        all_, new = (places.sum(-1).tolist() for places in (is_image, is_image[:, cached:]))
        if pixel_values is not None:
            views, unseen = ([count // self.config.image_seq_length for count in counts] for counts in (all_, new))
            if len(pixel_values) == sum(views):  # the whole conversation: cached images are not encoded again
                keep = torch.cat([torch.arange(total) >= total - last for total, last in zip(views, unseen)])
                pixel_values = pixel_values[keep]
                image_view_index = None if image_view_index is None else image_view_index[keep]
            if len(pixel_values):
                device = None if self.device.type == "meta" else self.device  # offloaded weights come to their inputs
                outputs = self.get_image_features(pixel_values.to(device), image_view_index, return_dict=True)
        tokens = torch.cat(outputs.pooler_output) if outputs is not None else torch.empty(0)  # (ΣN, D)
        given = all_ if len(tokens) == sum(all_) else new
        if len(tokens) != sum(given):
            raise ValueError(
                f"Image features and image tokens do not match: new <image> tokens per sample {new}, image features "
                f"{len(tokens)}; make both with one OmniFusionProcessor, and with a kept cache pass all images or "
                "only new ones."
            )
        rows = [sample[len(sample) - last :] for sample, last in zip(tokens.split(given), new)]  # (N, D) each
        if not any(new):
            return {}
        if kwargs.get("assistant_model") is None and not self._setting("prefill_chunk_size", config, kwargs):
            return {"image_embeds": pad_sequence(rows, batch_first=True)}  # (B, N, D)
        # A draft model does not get that argument (and drafts for one sample), and a chunked prefill does not cut it.
        return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=rows)}}

    @wraps(GenerationMixin.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(self, *args, is_first_iteration: bool = False, **kwargs) -> dict:
        inputs = super().prepare_inputs_for_generation(*args, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and _cached_length(kwargs):  # images are in the cache
            for name in ("image_embeds", "mm_encoder_outputs"):
                inputs.pop(name, None)
        return inputs


def _cached_length(kwargs: dict) -> int:
    cache = kwargs.get("cache", kwargs.get("past_key_values"))  # transformers 5.24 renamed it
    try:
        return 0 if cache is None else cache.get_seq_length()
    except ValueError:  # the states of Mamba have a past, but no length
        return 1
