# Copyright 2026 The omnifusion_hf authors. All rights reserved.
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0 Unless required by
# applicable law or agreed to in writing, software distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the License for the specific language
# governing permissions and limitations under the License.
"""OmniFusion (arXiv 2404.06212): views -> encoders -> adapter -> visual tokens in place of `<image>` -> LLM.

Provenance: transformers' `LlavaForConditionalGeneration`, with its names, so that tools work. Differences: several
encoders and views, trained special tokens, and the adapters of paper section 3.2.
"""

import copy
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModel
from transformers.modeling_outputs import BaseModelOutputWithPast as ModelOutputWithPast
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast, ModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.quantizers import AutoQuantizationConfig
from transformers.utils import TransformersKwargs, can_return_tuple, logging

from .configuration_omnifusion import AUTO_MAP, OmniFusionConfig
from .generation_omnifusion import OmniFusionGenerationMixin
from .modeling_omnifusion_head import check, check_labels, predict
from .modeling_omnifusion_projector import extensions_of, save_extensions
from .modeling_omnifusion_vision import OmniFusionVisionModel, side_by_side, trains_on_many_ranks
from .views_omnifusion import views_per_image


logger = logging.get_logger(__name__)


# transformers 5.24 renamed the cache. It is not named here: `**kwargs` and inherited fields pass it on.
@dataclass
class OmniFusionModelOutputWithPast(ModelOutputWithPast):  # trf-ignore: TRF057
    image_outputs: BaseModelOutputWithPooling | None = None  # of `get_image_features`


@dataclass
class OmniFusionCausalLMOutputWithPast(CausalLMOutputWithPast):  # trf-ignore: TRF057
    image_outputs: BaseModelOutputWithPooling | None = None  # of `get_image_features`


def shared_fields(outputs: ModelOutput, output_class: type[ModelOutput]) -> dict:
    """The outputs for which the other class has a field; some LLMs return more, such as router logits."""
    return {name: value for name, value in outputs.items() if name in output_class.__dataclass_fields__}


class OmniFusionPreTrainedModel(PreTrainedModel):  # trf-ignore: TRF057
    config: OmniFusionConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values", "cache"]
    # Activations of InternViT-6B exceed float16's range. This does not affect bfloat16.
    _keep_in_fp32_modules = ["vision_tower", "multi_modal_projector"]

    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        # Adapters fill their own parameters (by name, not class: remote code loads a class twice).
        if hasattr(module, "init_parameters"):
            module.init_parameters()

    def post_init(self):
        super().post_init()
        # Families name the blocks of all their models; FSDP refuses a name that a model does not have.
        self._no_split_modules &= {type(module).__name__ for module in self.modules()}
        # An adapter adds up and attends to what must be on one device.
        self._no_split_modules.add(self.config.projector_class.__name__)

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: custom code is not asked to fill buffers of parts that have no parameters (Falcon-H1)."""
        return False

    @classmethod
    def from_pretrained(cls, *args, quantization_config=None, **kwargs) -> "OmniFusionPreTrainedModel":
        """As transformers' own. Quantises only the LLM; adds encoders, adapter and head to the caller's skip list."""
        if quantization_config is not None:
            kwargs["quantization_config"] = quantise_only_the_llm(quantization_config)
        loaded = super().from_pretrained(*args, **kwargs)
        for name, buffer in (loaded[0] if isinstance(loaded, tuple) else loaded).named_buffers():
            if name.endswith("relative_position_index"):  # Swin's; float32 if dtype is float16
                buffer.data = buffer.long()
        return loaded

    def save_pretrained(self, save_directory, is_main_process: bool = True, *args, **kwargs):
        """As transformers' own; removes weights of an earlier saving that would be loaded instead of these."""
        self.config.auto_map = dict(AUTO_MAP)  # of all classes: serving engines look for the headless AutoModel
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process:
            remove_earlier_weights(Path(save_directory), kwargs.get("variant"))
            if (Path(save_directory) / "config.json").is_file() and (classes := extensions_of(self)):
                save_extensions(classes, Path(save_directory))

    def load_adapter(self, peft_model_id: str | None = None, adapter_name: str | None = None, **kwargs):
        """As transformers' own. PEFT loads what that leaves out: DoRA's lengths, before 5.18 all but LoRA factors."""
        info = super().load_adapter(peft_model_id, adapter_name, **kwargs)
        if peft_model_id is not None:
            peft = import_module("peft")  # remote code is refused where a package in an import statement is missing
            weights = peft.load_peft_weights(peft_model_id, device="cpu", **kwargs.get("adapter_kwargs") or {})
            weights = {name.removeprefix("base_model.model."): weight for name, weight in weights.items()}
            loaded = peft.set_peft_model_state_dict(self, weights, adapter_name or "default")
            if info is not None:  # of transformers 5.18 and newer
                info.missing_keys &= {*loaded.missing_keys}
                info.unexpected_keys &= {*loaded.unexpected_keys}
        return info

    def enable_input_require_grads(self):
        """As transformers' own, of the LLM: encoders see to their own inputs, and Swin's embeddings give a tuple."""
        self.base_model.language_model.enable_input_require_grads()

    def disable_input_require_grads(self):
        self.base_model.language_model.disable_input_require_grads()

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **kwargs) -> nn.Embedding:
        """As transformers' own; unsets `predicted_vocab_size`, so that the added tokens can be learned."""
        embeddings = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        # CODEPATH: set in conversions of v1.1 and in the bundled model, else None
        if (rows := self.config.predicted_vocab_size) is not None and new_num_tokens is not None:
            logger.warning(f"predicted_vocab_size was {rows}; now every row is predicted.")
            self.config.predicted_vocab_size = None
        return embeddings

    @property
    def dtype(self) -> torch.dtype:
        """The LLM's dtype; encoders and adapter may be in float32."""
        return self.get_input_embeddings().weight.dtype

    def half(self):
        return self.to(torch.float16)

    def to(self, *args, **kwargs) -> "OmniFusionPreTrainedModel":
        """As torch's own, but float16 makes encoders and adapter float32, as `from_pretrained(dtype=float16)` does."""
        if torch.float16 not in (*args, *kwargs.values()):
            return super().to(*args, **kwargs)
        for name, module in self.named_children():
            swap = {torch.float16: torch.float32} if name in self._keep_in_fp32_modules else {}
            module.to(*(swap.get(arg, arg) for arg in args), **{k: swap.get(arg, arg) for k, arg in kwargs.items()})
        return self


# Matched from the beginning of a name: of the whole model, then of the model without its head.
NOT_QUANTISED = "model.vision_tower model.multi_modal_projector lm_head vision_tower multi_modal_projector".split()


def quantise_only_the_llm(quantization_config):
    """A copy (of an object or dict) whose list of modules that are not quantised, by any name, has our parts too."""
    config = copy.deepcopy(quantization_config)
    if isinstance(config, dict):
        config = AutoQuantizationConfig.from_dict(config)
    for name in ("llm_int8_skip_modules", "modules_to_not_convert", "skip_modules"):
        if hasattr(config, name):
            given = getattr(config, name) or []
            # torchao matches names of parameters: `q_proj` would match nothing.
            weights = [f"{module}.weight" for module in given if not module.endswith("weight")]
            setattr(config, name, list(dict.fromkeys([*NOT_QUANTISED, *given, *weights])))
    return config


def remove_earlier_weights(folder: Path, variant: str | None):
    """Of one file and of shards, only the newer weights stay: transformers loads the one file first."""
    end = f".{variant}" if variant else ""
    weights = [folder / f"model{end}.safetensors", folder / f"model.safetensors.index{end}.json"]
    weights = sorted(filter(Path.is_file, weights), key=lambda path: path.stat().st_mtime_ns)
    for earlier in weights[:-1]:
        earlier.unlink()
    lora = folder / "adapter_config.json"
    if weights and lora.is_file() and lora.stat().st_mtime_ns < weights[-1].stat().st_mtime_ns:
        logger.warning(f"{folder} has LoRA weights too, which from_pretrained loads; remove adapter_*.")


class OmniFusionModel(OmniFusionPreTrainedModel):  # trf-ignore: TRF057
    """Encoders, adapter and LLM without its head."""

    def __init__(self, config: OmniFusionConfig):
        super().__init__(config)
        self.vision_tower = OmniFusionVisionModel(
            config.vision_config, config.vision_feature_layer, config.vision_feature_select_strategy == "full"
        )
        self.multi_modal_projector = config.projector_class(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    @can_return_tuple
    def get_image_features(  # trf-ignore: TRF057
        self,
        pixel_values: torch.Tensor,
        image_view_index: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        """Visual tokens of the images in `pixel_values` (ΣV, 3, S, S); the only way to encode them.

        image_view_index: (ΣV,), 0 at the first view of each image; without it every view is an image.
        Returns `last_hidden_state` (ΣV, max P_e, Σd), the encoders' last features with concatenated channels, and
        `pooler_output`, the adapter's output, one (V·P, D) per image (in a compiled graph one (ΣV·P, D) for all)."""
        if image_view_index is not None and len(image_view_index) != len(pixel_values):
            raise ValueError(
                f"image_view_index has {len(image_view_index)} entries for {len(pixel_values)} views in pixel_values; "
                "pass both as OmniFusionProcessor made them."
            )
        weights = (weight for weight in self.multi_modal_projector.parameters() if weight.is_floating_point())
        if (weight := next(weights, None)) is None:  # others are quantised
            raise ValueError(
                "The adapter has no parameters here. torch.nn.DataParallel, which Trainer uses for several GPUs in "
                "one process, takes them away: use torchrun or accelerate launch, or set CUDA_VISIBLE_DEVICES=0."
            )
        device = None if weight.is_meta else weight.device  # offloaded weights come to the features

        def projector(features):
            return self.multi_modal_projector(feature.to(device=device, dtype=weight.dtype) for feature in features)

        outputs = self.vision_tower(pixel_values, projector=projector, return_dict=True, **kwargs)
        num_views = [1] * len(pixel_values) if image_view_index is None else [len(pixel_values)]
        if image_view_index is not None and not torch.compiler.is_compiling():
            num_views = views_per_image(image_view_index.cpu())
        visual_tokens = outputs.features.flatten(0, 1)  # (ΣV·P, D)
        return BaseModelOutputWithPooling(
            last_hidden_state=side_by_side(outputs.last_features),
            pooler_output=list(visual_tokens.split([count * outputs.features.shape[1] for count in num_views])),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def image_places(self, input_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        """The places of the visual tokens, (B, L), in ids or, without them, in their embeddings."""
        if input_ids is not None:
            return input_ids == self.config.image_token_id
        image_token = torch.full((), self.config.image_token_id, dtype=torch.long, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(image_token)).all(-1)

    def get_placeholder_mask(
        self, input_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor, image_features: torch.Tensor
    ) -> torch.Tensor:
        """The places of the visual tokens, (B, L, 1); raises `ValueError` if there are more or fewer features."""
        mask = self.image_places(input_ids, inputs_embeds)
        check(
            mask.sum() == image_features.shape[0],
            lambda: (
                f"Image features and image tokens do not match: <image> tokens per sample {mask.sum(-1).tolist()}, "
                f"image features {image_features.shape[0]}; make both with one OmniFusionProcessor, and with a kept "
                "cache pass new images only."
            ),
        )
        return mask.unsqueeze(-1).to(inputs_embeds.device)

    @can_return_tuple
    def forward(  # trf-ignore: TRF057
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_view_index: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        image_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | OmniFusionModelOutputWithPast:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if sum(given is not None for given in (pixel_values, mm_encoder_outputs or None, image_embeds)) > 1:
            raise ValueError("pixel_values, mm_encoder_outputs and image_embeds are the same images; pass only one")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)  # (B, L, D)

        image_outputs, image_features = (mm_encoder_outputs or {}).get("image"), None
        if pixel_values is not None:
            image_outputs = self.get_image_features(pixel_values, image_view_index, return_dict=True, **kwargs)
        if image_outputs is not None:
            image_features = torch.cat(image_outputs.pooler_output)  # (ΣV·P, D)
        elif image_embeds is not None:
            num_tokens = self.image_places(input_ids, inputs_embeds).sum(-1, keepdim=True)  # (B, 1)
            is_token = torch.arange(image_embeds.shape[1], device=num_tokens.device) < num_tokens  # (B, N)
            image_features = image_embeds[is_token.to(image_embeds.device)]  # (ΣV·P, D)
        elif self.training and trains_on_many_ranks():  # all must run the same modules; gradients are zero
            size = self.config.vision_config.image_size
            image_features = self.get_image_features(inputs_embeds.new_zeros(1, 3, size, size)).pooler_output[0][:0]
        elif input_ids is not None and input_ids.shape[1] > 1:  # a single token is a generated one, never <image>
            image_features = inputs_embeds[0, :0]  # places without an image raise
        if image_features is not None:
            image_features = image_features.to(inputs_embeds.device, inputs_embeds.dtype)
            mask = self.get_placeholder_mask(input_ids, inputs_embeds, image_features)
            inputs_embeds = inputs_embeds.masked_scatter(mask, image_features)

        given = {"attention_mask": attention_mask, "position_ids": position_ids, "inputs_embeds": inputs_embeds}
        outputs = self.language_model(**given, return_dict=True, **kwargs)
        outputs = shared_fields(outputs, OmniFusionModelOutputWithPast)
        return OmniFusionModelOutputWithPast(**outputs, image_outputs=image_outputs)


class OmniFusionForConditionalGeneration(OmniFusionPreTrainedModel, OmniFusionGenerationMixin):  # trf-ignore: TRF057
    """The whole model with the language modelling head."""

    _tp_plan = {"lm_head": "colwise_gather_output"}
    # Training checkpoints have these rows twice, also in the precision in which they train.
    _keys_to_ignore_on_load_unexpected = [r"special_token_rows$"]
    # Set by training, which needs only the loss: computes it from hidden states, without the logits of the batch.
    loss_from_states = None

    def __init__(self, config: OmniFusionConfig):
        super().__init__(config)
        self.model = OmniFusionModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        embeddings = self.get_input_embeddings()  # `embed_tokens`, `embed_in`, `wte`, …
        name = next(name for name, module in self.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        self.post_init()

    @classmethod
    def from_vision_text_pretrained(
        cls, vision: list[str], text: str, dtype: torch.dtype | str = "auto", **config
    ) -> "OmniFusionForConditionalGeneration":
        """Assembles a model from pretrained parts, whose weights stay bit-identical; needs the package omnifusion_hf.
        Raises `ValueError` for an LLM whose answers to text would change.

        vision, text: names or folders of the encoders, in the adapter's order, and of a causal language model.
        dtype, config: as in `from_pretrained`; fields of [`OmniFusionConfig`] and its vision part."""
        return import_module("omnifusion_hf.build.assemble").assemble(cls, vision, text, dtype, **config)

    @wraps(OmniFusionModel.get_image_features)
    def get_image_features(self, *args, **kwargs) -> tuple | BaseModelOutputWithPooling:  # trf-ignore: TRF057
        return self.model.get_image_features(*args, **kwargs)

    @can_return_tuple
    def forward(  # trf-ignore: TRF057
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_view_index: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        image_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | OmniFusionCausalLMOutputWithPast:
        r"""pixel_values: (ΣV, 3, S, S), views of all images of the batch, in the order of their placeholders.
        image_view_index: (ΣV,), 0 at each image's first view, then counting up.
        labels: (B, L), ids to predict, -100 where none; shifted inside.
        mm_encoder_outputs: `{"image": get_image_features(...)}` computed before, instead of `pixel_values`.
        image_embeds: (B, N, D), visual tokens of each sample, padded at the end, which `generate()` passes instead."""
        images = {"pixel_values": pixel_values, "image_view_index": image_view_index, "image_embeds": image_embeds}
        text = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        given = {"inputs_embeds": inputs_embeds, "mm_encoder_outputs": mm_encoder_outputs, "return_dict": True}
        outputs = self.model(**text, **images, **given, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden_states = outputs.last_hidden_state[:, kept]
        logits = loss = None
        check_labels(labels, self.config)
        check_labels(kwargs.get("shift_labels"), self.config)
        if self.loss_from_states is not None and self.training and labels is not None:
            loss = self.loss_from_states(hidden_states, labels, self.lm_head, self.config, **kwargs)
        else:
            logits = predict(hidden_states, self.lm_head, self.config)  # (B, L, vocab)
            if labels is not None:
                loss = self.loss_function(logits, labels, self.config.text_config.vocab_size, **kwargs)
        outputs = shared_fields(outputs, OmniFusionCausalLMOutputWithPast)
        return OmniFusionCausalLMOutputWithPast(loss=loss, logits=logits, **outputs)


__all__ = ["OmniFusionForConditionalGeneration", "OmniFusionModel", "OmniFusionPreTrainedModel"]
