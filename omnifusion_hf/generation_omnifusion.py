# Copyright 2026 The omnifusion_hf authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""What `generate()` does otherwise here: tokens that are never an answer, the n-gram rule, views in a kept cache."""

import torch
from transformers.generation import (
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
)


class AnswerOnly(LogitsProcessor):
    """Hides the prompt from another logits processor."""

    def __init__(self, processor: LogitsProcessor, prompt_length: int):
        self.processor, self.prompt_length = processor, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        return self.processor(input_ids[:, self.prompt_length :], scores)


class OmniFusionGenerationMixin(GenerationMixin):
    """transformers' own `generate()`, with the hooks that OmniFusion needs."""

    def _prepare_generation_config(self, generation_config, **kwargs):
        # Special tokens are places and marks, never an answer, whatever else a caller suppresses.
        generation_config, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)
        suppressed = {*(generation_config.suppress_tokens or ()), *self.config.special_token_ids}
        generation_config.suppress_tokens = sorted(suppressed)
        return generation_config, model_kwargs

    def _get_logits_processor(self, generation_config, input_ids_seq_length=None, **kwargs):
        # The release generates from embeddings, so its n-gram rule never sees the prompt; converted models say so.
        processors = super()._get_logits_processor(generation_config, input_ids_seq_length, **kwargs)
        if getattr(generation_config, "no_repeat_ngram_in_prompt", True):
            return processors
        return LogitsProcessorList(
            AnswerOnly(processor, input_ids_seq_length)
            if isinstance(processor, NoRepeatNGramLogitsProcessor)
            else processor
            for processor in processors
        )

    def _maybe_prepare_encoder_kwargs_for_generation(self, inputs_tensor, model_kwargs, model_input_name, *args):
        if model_input_name == "input_ids" and model_kwargs.get("pixel_values") is not None:
            model_kwargs = self._without_cached_views(inputs_tensor, model_kwargs)
        return super()._maybe_prepare_encoder_kwargs_for_generation(
            inputs_tensor, model_kwargs, model_input_name, *args
        )

    def _without_cached_views(self, input_ids: torch.LongTensor, model_kwargs: dict) -> dict:
        """Drops views whose tokens a kept cache holds, so that each turn may pass the whole conversation again."""
        cache, pixel_values = model_kwargs.get("past_key_values"), model_kwargs["pixel_values"]
        in_cache = cache.get_seq_length() if cache is not None else 0
        is_image = input_ids == self.config.image_token_id
        views = is_image.sum(-1) // self.config.image_seq_length  # (B,)
        cached = is_image[:, :in_cache].sum(-1) // self.config.image_seq_length  # (B,)
        if not cached.any() or len(pixel_values) != views.sum():
            return model_kwargs
        new = torch.cat([torch.arange(total) >= known for total, known in zip(views.tolist(), cached.tolist())])
        per_view = {
            name: model_kwargs.pop(name) for name in ("pixel_values", "image_view_index") if name in model_kwargs
        }
        return model_kwargs | ({name: values[new] for name, values in per_view.items()} if new.any() else {})


__all__ = ["OmniFusionGenerationMixin"]
