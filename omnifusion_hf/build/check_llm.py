# Copyright 2026 The omnifusion_hf authors.
# SPDX-License-Identifier: Apache-2.0
"""Refuses an LLM that would not be itself behind an adapter, and says why: its family, its head, its answers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from transformers import MODEL_MAPPING
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel


CURE = "use another LLM (Mistral, Llama, Qwen, Gemma, Granite, …: docs/building.md)."


def check_family(name: str, config: PreTrainedConfig):
    """Raises `ValueError` for a language part that is no model of its own."""
    if type(config) not in MODEL_MAPPING:
        raise ValueError(
            f"the language part of {name}, `{config.model_type}`, is no model of its own in transformers; {CURE}"
        )


def check_head(name: str, llm: PreTrainedModel):
    """Raises `ValueError` for a head with a bias, which neither this model nor serving engines have."""
    if llm.get_output_embeddings().bias is not None:
        raise ValueError(
            f"{name} (`{llm.config.model_type}`): its head adds a bias to the logits, and OmniFusion's head has none; "
            f"{CURE}"
        )


@torch.no_grad()
def check_answers(model: PreTrainedModel, llm: PreTrainedModel):
    """Raises `ValueError` if the logits of a text, with or without visual tokens, are not the LLM's, or if answers
    depend on the cache."""
    ids = torch.arange(8).unsqueeze(0)  # (1, 8)
    embeds = llm.get_input_embeddings()(ids)  # (1, 8, D)
    visual_tokens = embeds[:, 2:4] / 2  # (1, 2, D), no rows of the table
    mixed = torch.cat([embeds[:, :2], visual_tokens, embeds[:, 4:]], dim=1)  # (1, 8, D)
    with_image = ids.clone()
    with_image[:, 2:4] = model.config.image_token_id
    check = Check(llm.config.get_text_config().model_type)
    text = llm(input_ids=ids).logits  # (1, 8, vocab)
    check.equal(
        lambda: llm(inputs_embeds=embeds).logits,
        lambda: text,
        "does more with ids than a look-up in its table (a factor, embeddings in every layer), and visual tokens have "
        "no ids",
    )
    check.equal(
        lambda: model(input_ids=ids).logits,
        lambda: text,
        "does more between its last layer and its logits than a matrix, logit_scale, logits_scaling and "
        "final_logit_softcapping",
    )
    check.equal(
        lambda: model(input_ids=with_image, image_embeds=visual_tokens).logits,
        lambda: llm(inputs_embeds=mixed).logits,
        "treats visual tokens unlike the embeddings of words (embeddings in every layer, for one)",
    )
    cached = cache(lambda: greedy(model, ids))
    check.equal(
        lambda: torch.cat(cached().logits),  # (3, vocab)
        lambda: torch.cat(greedy(model, ids, use_cache=False, **same_tokens(cached().sequences[0])).logits),
        "answers otherwise with a cache",
        tolerance=16 * torch.finfo(llm.dtype).eps,  # other kernels compute the same
    )


def greedy(model: PreTrainedModel, ids: torch.LongTensor, **options):
    """Three tokens after ids (1, L), with their logits."""
    options |= {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    return model.generate(ids, max_new_tokens=3, min_new_tokens=3, **options)


def same_tokens(sequence: torch.LongTensor) -> dict[str, Callable]:
    """Makes `generate` repeat a sequence: rounding may decide between two tokens."""
    return {"prefix_allowed_tokens_fn": lambda _, given: sequence[len(given) : len(given) + 1].tolist()}


@dataclass(frozen=True)
class Check:
    """Comparisons of one LLM."""

    family: str

    def equal(
        self, compute: Callable[[], torch.Tensor], expect: Callable[[], torch.Tensor], reason: str, tolerance=1e-3
    ):
        """Raises `ValueError` with the reason if logits differ by more than rounding, or cannot be computed.

        tolerance: in parts of a logit, or of the largest one.
        """
        try:
            found, expected = compute().float(), expect().float()
        except Exception as error:
            raise ValueError(f"`{self.family}` {reason}: {' '.join(str(error).split())[:200]}; {CURE}") from error
        atol = 1e-4 if tolerance <= 1e-3 else tolerance * expected.abs().max().item()
        if not torch.allclose(found, expected, rtol=max(1e-3, tolerance), atol=atol):
            difference = (found - expected).abs().max()
            raise ValueError(f"`{self.family}` {reason}: logits differ by {difference:.3g}; {CURE}")
