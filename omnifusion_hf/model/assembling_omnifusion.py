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
"""Pretrained encoders and a pretrained LLM to one model whose adapter and special tokens are untrained.

The parts keep their weights bit for bit, and the model answers text exactly as its LLM does; what cannot be kept is
refused with its reason. And the way back: a saved folder holds the weights of one model alone.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModel, AutoModelForCausalLM, GenerationConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.quantizers import AutoQuantizationConfig
from transformers.utils import logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from .modeling_omnifusion_projector import PROJECTORS
from .modeling_omnifusion_vision import last_layers, trim_encoder
from .processing_omnifusion import add_special_tokens, load_tokenizer


logger = logging.get_logger(__name__)


def assemble(cls: type, vision: list[str], text: str, dtype: torch.dtype | str, **config) -> PreTrainedModel:
    """A `cls` from pretrained parts; arguments and result are those of `cls.from_vision_text_pretrained`."""
    tokenizer = add_special_tokens(load_tokenizer(text))
    model_config = cls.config_class.from_vision_text_pretrained(vision, text, tokenizer=tokenizer, **config)
    llm = load_llm(text, model_config.text_config.vocab_size, dtype)
    model_config.text_config = llm.config  # one object, so that later changes reach the modules
    with torch.device("meta"):
        model = cls(model_config)
    model.model.language_model, model.lm_head = llm.base_model, llm.get_output_embeddings()
    fill_tower(model, vision, dtype)
    model.model.multi_modal_projector = PROJECTORS[model_config.projector_type](model_config).to(llm.dtype)
    model.generation_config = generation_config_for(llm.generation_config, tokenizer)
    model.tie_weights()
    model.eval()
    check_head(model, llm)
    return model.half() if llm.dtype == torch.float16 else model


def load_llm(text: str, vocab_size: int, dtype: torch.dtype | str) -> PreTrainedModel:
    """A causal LLM with that many vocabulary rows.

    New rows are the mean of the old ones: such a row's logit is never the largest, so that rows which are no token
    need not be suppressed, and tokens that a user adds to the vocabulary later can be learnt.
    Raises `ValueError` for a head with a bias, which neither this model nor serving engines have.
    """
    llm, loading = AutoModelForCausalLM.from_pretrained(text, dtype=dtype, output_loading_info=True)
    check_loaded(text, llm, loading)
    if llm.get_output_embeddings().bias is not None:
        raise ValueError(
            f"{text} ({llm.config.model_type}): its head adds a bias to the logits, and OmniFusion's head has none; "
            "use an LLM whose head is a plain matrix (Mistral, Llama, Qwen, Gemma, GPT-NeoX, Cohere, Granite, …)."
        )
    llm.resize_token_embeddings(vocab_size)
    return llm.eval()


def fill_tower(model: PreTrainedModel, vision: list[str], dtype: torch.dtype | str):
    """Puts the pretrained encoders, cut above the layer in use, where the model has its places for them."""
    tower, vision_config = model.model.vision_tower, model.config.vision_config
    layers = last_layers(vision_config, model.config.vision_feature_layer)
    for index, (name, layer) in enumerate(zip(vision, layers)):
        encoder, loading = AutoModel.from_pretrained(
            name, config=vision_config.encoder_configs[index], dtype=dtype, output_loading_info=True
        )
        tower.encoders[index] = trim_encoder(encoder, layer)
        check_loaded(name, encoder, loading)
        vision_config.encoder_configs[index] = encoder.config


def check_loaded(name: str, part: PreTrainedModel, loading: dict):
    """Raises `ValueError` where a weight that is in use was not in the files; transformers fills it at random."""
    absent = sorted(set(loading["missing_keys"]) & part.state_dict().keys())
    if absent:
        raise ValueError(
            f"{name} lacks {len(absent)} weights of a `{part.config.model_type}` ({', '.join(absent[:3])}, …): it is "
            "incomplete, or in a layout that has to be converted first (docs/conversion.md)."
        )


def generation_config_for(llm_config: GenerationConfig, tokenizer) -> GenerationConfig:
    """The LLM's settings; the tokenizer's EOS, which ends trained answers, stops as well, and something pads."""
    ends = llm_config.eos_token_id if llm_config.eos_token_id is not None else []
    ends = [*ends] if isinstance(ends, list) else [ends]
    llm_config.eos_token_id = list(dict.fromkeys([*ends, tokenizer.eos_token_id]))
    if llm_config.pad_token_id is None:
        llm_config.pad_token_id = tokenizer.pad_token_id
    return llm_config


@torch.no_grad()
def check_head(model: PreTrainedModel, llm: PreTrainedModel):
    """Raises `ValueError` where the model's logits of a text are not its LLM's: the LLM's head does something more."""
    ids = torch.arange(8).unsqueeze(0)  # (1, 8)
    ours, theirs = (part(input_ids=ids).logits.float() for part in (model, llm))  # (1, 8, vocab)
    if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5):
        raise ValueError(
            f"`{llm.config.model_type}` does more between its last layer and its logits than a matrix, logit_scale, "
            f"logits_scaling and final_logit_softcapping: logits differ by {(ours - theirs).abs().max():.3g}; use "
            "another LLM (Mistral, Llama, Qwen, Gemma, GPT-NeoX, Cohere, Granite, …)."
        )


# Names are matched from their beginning: those of the whole model, then those of the model without its head.
WHOLE = ["model.vision_tower", "model.multi_modal_projector", "lm_head", "vision_tower", "multi_modal_projector"]


def keep_whole(quantization_config: dict | QuantizationConfigMixin) -> QuantizationConfigMixin:
    """A copy whose list of modules that are not quantised holds `WHOLE` too; methods name that list differently."""
    if isinstance(quantization_config, dict):
        quantization_config = AutoQuantizationConfig.from_dict(quantization_config)
    quantization_config = copy.deepcopy(quantization_config)
    for name in ("llm_int8_skip_modules", "modules_to_not_convert", "skip_modules"):
        if hasattr(quantization_config, name):
            given = getattr(quantization_config, name) or []
            # torchao's names are those of parameters: `q_proj` alone would be missed without a word
            weights = [f"{module}.weight" for module in given if not module.endswith("weight")]
            setattr(quantization_config, name, list(dict.fromkeys([*WHOLE, *given, *weights])))
    return quantization_config


@contextmanager
def superseded_weights_removed(folder: str, variant: str | None) -> Iterator[None]:
    """Around the saving of a model: what an earlier saving into the folder left goes when the new weights are whole.
    One file wins over shards when loaded, so that after a saving in shards the earlier weights would come back."""
    end = f".{variant}" if variant else ""
    weights = [Path(folder) / f"model{end}.safetensors", Path(folder) / f"model.safetensors.index{end}.json"]
    lora = Path(folder) / "adapter_config.json"
    before = {path: _stamp(path) for path in (*weights, lora)}
    yield
    new = {path for path, stamp in before.items() if _stamp(path) != stamp}
    superseded = {*weights} - new
    if len(superseded) == 1:
        superseded.pop().unlink(missing_ok=True)
        if lora.is_file() and lora not in new:
            logger.warning(f"{folder} holds LoRA weights too, which from_pretrained takes first; remove adapter_*.")


def _stamp(path: Path) -> tuple | None:
    return (path.stat().st_mtime_ns, path.stat().st_ino, path.stat().st_size) if path.is_file() else None
