# Copyright 2026 The omnifusion_hf authors. All rights reserved.
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0 Unless required by
# applicable law or agreed to in writing, software distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the License for the specific language
# governing permissions and limitations under the License.
"""The adapters of paper section 3.2: features of the encoders to visual tokens of the LLM's width.

An adapter reads features (views, P_e, d_e) in the order in which the encoders yield them: one per encoder, or
(summation, attention) every layer of the first encoder, then of the next. It returns (views, P, D).

Provenance: `mlp` is LLaVA-1.5's adapter, `transformer` that of the authors' release v1.1; the merge of layers follows
COMM (arXiv 2310.08825), but layers are merged as they come instead of being stacked.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from importlib import import_module
from pathlib import Path

import torch
from torch import nn
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig


PROJECTORS: dict[str, type["Projector"]] = {}  # by `projector_type`


class Projector(nn.Module):
    """An adapter, made as `Projector(config)`. A subclass has a constructor and `forward`, and changes what the
    configuration asks."""

    reads_all_layers = False  # whether it reads every layer of every encoder, else one layer of each
    needs_equal_tokens = False  # whether all encoders must give as many tokens: it concatenates their channels

    @staticmethod
    def num_tokens(config: PreTrainedConfig) -> int:
        """P, the visual tokens of one view in the LLM."""
        return max(config.num_encoder_tokens)

    @staticmethod
    def attention_width(config: PreTrainedConfig) -> int | None:
        """The width of its attention, of which `projector_num_attention_heads` must be a divisor."""
        return None


def register_projector(projector_type: str) -> Callable[[type[Projector]], type[Projector]]:
    """A decorator that makes an adapter known by a `projector_type`."""

    def register(cls: type[Projector]) -> type[Projector]:
        PROJECTORS[projector_type] = cls
        return cls

    return register


def extensions_of(model: nn.Module) -> set[type]:
    """The classes of the adapter and of encoders that are in files of users, which go with a saved model."""
    parts = {model.config.projector_class, *map(type, model.base_model.vision_tower.encoders)}
    # FSDP2 makes subclasses, whose module is torch's.
    classes = {next(cls for cls in part.__mro__ if not cls.__module__.startswith("torch.")) for part in parts}
    ours = r"(omnifusion_hf|transformers)\.|.*\bmodeling_omnifusion_(projector|vision)$"
    return {cls for cls in classes if not re.match(ours, cls.__module__)}


def save_extensions(classes: set[type], folder: Path):
    """Writes the files of these classes beside a saved model, and makes the folder's configuration import them.

    Raises `ValueError` for a class without a file, and for a file that needs more of this package than a folder has.
    """
    sources = {source_file(cls): cls.__name__ for cls in sorted(classes, key=lambda cls: cls.__name__)}
    *others, first = sources
    lines = [f"from .{file.stem} import {sources[file]}  # registers it" for file in others]
    lines += ["from .configuration_omnifusion import OmniFusionConfig  # config.json names it in this file"]
    added = "\n".join(["", *lines, ""])
    for file in sources:
        text = file.read_text("utf-8")
        if re.search(r"^\s*(from|import) omnifusion_hf\b", text, re.M):  # remote code, perhaps without it, has none
            text = import_module("omnifusion_hf.extensions").as_remote_code(file)
        (folder / file.name).write_text(text if file != first or text.endswith(added) else text + added, "utf-8")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["auto_map"]["AutoConfig"] = f"{first.stem}.OmniFusionConfig"
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def source_file(cls: type) -> Path:
    file = getattr(sys.modules[cls.__module__], "__file__", None)
    if file is None or cls.__module__ == "__main__":
        raise ValueError(f"{cls.__name__} must be in a file of its own, which is saved with the model; import it.")
    return Path(file)


@register_projector("mlp")
class MlpProjector(Projector):
    """`W2 gelu(W1 [x_1; …; x_N] + b1) + b2`: two linear layers with GELU between. The paper's best for one encoder."""

    needs_equal_tokens = True

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        width = config.text_config.hidden_size
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, width)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(width, width)

    def forward(self, features: Iterable[torch.Tensor]) -> torch.Tensor:
        hidden_states = torch.cat(list(features), dim=-1)  # (views, P, Σd)
        return self.linear_2(self.act(self.linear_1(hidden_states)))  # (views, P, D)


class ProjectorAttention(nn.Module):
    """Multi-head attention without a mask, of Linear layers: serving engines replace those, not
    nn.MultiheadAttention. PyTorch chooses the kernel, whatever attention encoders and LLM use."""

    def __init__(self, config: PreTrainedConfig, width: int):
        super().__init__()
        self.head_dim = width // config.projector_num_attention_heads
        self.dropout = config.projector_dropout
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)

    def forward(self, queries: torch.Tensor, sequence: torch.Tensor) -> torch.Tensor:
        """queries (views, Q, d) attend to a sequence (views, P, d); returns (views, Q, d)."""
        query, key, value = (
            projection(states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (views, heads, Q or P, head_dim)
            for projection, states in ((self.q_proj, queries), (self.k_proj, sequence), (self.v_proj, sequence))
        )
        dropout = self.dropout if self.training else 0.0
        output = nn.functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.o_proj(output.transpose(1, 2).flatten(-2))  # (views, Q, d)


class ProjectorLayer(nn.Module):
    """PyTorch's `TransformerEncoderLayer(norm_first=False)`: post-norm, ReLU, dropout in four places."""

    def __init__(self, config: PreTrainedConfig, width: int):
        super().__init__()
        self.self_attn = ProjectorAttention(config, width)
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, config.projector_intermediate_size)
        self.linear2 = nn.Linear(config.projector_intermediate_size, width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.projector_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.norm1(hidden_states + self.dropout(self.self_attn(hidden_states, hidden_states)))
        feed_forward = self.linear2(self.dropout(nn.functional.relu(self.linear1(hidden_states))))
        return self.norm2(hidden_states + self.dropout(feed_forward))  # (views, P, d)


@register_projector("transformer")
class TransformerProjector(Projector):
    """`W layer([x_1; …; x_N]) + b`: a transformer layer over the visual tokens, then a linear map, as in v1.1."""

    needs_equal_tokens = True

    @staticmethod
    def attention_width(config: PreTrainedConfig) -> int:
        return config.vision_config.hidden_size

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.transformer_layer = ProjectorLayer(config, config.vision_config.hidden_size)
        self.linear = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)

    def forward(self, features: Iterable[torch.Tensor]) -> torch.Tensor:
        hidden_states = torch.cat(list(features), dim=-1)  # (views, P, Σd)
        return self.linear(self.transformer_layer(hidden_states))  # (views, P, D)


@register_projector("concatenation")
class ConcatenationProjector(Projector):
    """`W layer([A_1 x_1 | … | A_N x_N]) + b`: a linear map for each encoder to the first one's width, the sequences
    concatenated, then as in the transformer adapter. P = ΣP_e."""

    @staticmethod
    def num_tokens(config: PreTrainedConfig) -> int:
        return sum(config.num_encoder_tokens)

    @staticmethod
    def attention_width(config: PreTrainedConfig) -> int:
        return config.vision_config.hidden_sizes[0]

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        width = self.attention_width(config)
        self.encoder_linears = nn.ModuleList(nn.Linear(size, width) for size in config.vision_config.hidden_sizes)
        self.transformer_layer = ProjectorLayer(config, width)
        self.linear = nn.Linear(width, config.text_config.hidden_size)

    def forward(self, features: Iterable[torch.Tensor]) -> torch.Tensor:
        sequences = [linear(sequence) for linear, sequence in zip(self.encoder_linears, features)]
        hidden_states = torch.cat(sequences, dim=1)  # (views, ΣP_e, d_1)
        return self.linear(self.transformer_layer(hidden_states))  # (views, ΣP_e, D)


class NormLinear(nn.Module):
    """Adds `c W LN(x)` to a sum. W and LN's gain g and shift s are its own, because serving engines pack the weights
    of nn.Linear and nn.LayerNorm, which could not be read then."""

    def __init__(self, width: int, output_width: int):
        super().__init__()
        self.gain = nn.Parameter(torch.empty(width))
        self.shift = nn.Parameter(torch.empty(width))
        self.weight = nn.Parameter(torch.empty(output_width, width))
        self.init_parameters()

    def init_parameters(self):
        init.ones_(self.gain)
        init.zeros_(self.shift)
        init.kaiming_uniform_(self.weight, a=5**0.5)  # as nn.Linear starts

    def forward(
        self, features: torch.Tensor, scale: torch.Tensor, total: torch.Tensor, offset: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds c W LN(x) of features (views, P, d) to total (views, P, D) + offset (D) in place. Returns both, because
        DeepSpeed passes aliases of inputs to modules, so the caller's tensors would have no gradient."""
        gain, shift, weight = scale * self.gain, scale * self.shift, self.weight
        if torch.is_grad_enabled():
            # W (g * n + s) = (W g) n + W s: frozen features n need no gradient, so one of three products is saved.
            weight, gain = weight * gain, None
            offset += nn.functional.linear(shift, self.weight)
            shift = None
        normed = nn.functional.layer_norm(features, features.shape[-1:], gain, shift)
        if torch.is_autocast_enabled(total.device.type):  # autocast would compute addmm_ in float32
            total += nn.functional.linear(normed, weight)
        else:
            total.flatten(0, 1).addmm_(normed.flatten(0, 1), weight.t())
        return total, offset


class LayerMerge(nn.Module):
    """`Σ_l c_l W_l LN_l(x_l)` over the layers of one encoder; `c` is trained and starts equal. The maps have no bias,
    so that a missing token adds nothing. Layers are added as they come: neither they nor their projections are kept.
    """

    def __init__(self, num_layers: int, width: int, output_width: int):
        super().__init__()
        self.coefficients = nn.Parameter(torch.empty(num_layers))
        self.maps = nn.ModuleList(NormLinear(width, output_width) for _ in range(num_layers))
        self.output_width = output_width
        self.init_parameters()

    def init_parameters(self):
        init.constant_(self.coefficients, 1 / len(self.coefficients))

    def forward(self, features: Iterator[torch.Tensor]) -> torch.Tensor:
        """Takes this encoder's layers (views, P_e, d_e) from the iterator; returns (views, P_e, D)."""
        merged, offset = None, self.coefficients.new_zeros(self.output_width)  # (D)
        for coefficient, add_map in zip(self.coefficients, self.maps):
            states = next(features).to(offset.device)
            if merged is None:
                merged = states.new_zeros(*states.shape[:-1], self.output_width)  # (views, P_e, D)
            merged, offset = add_map(states, coefficient, merged, offset)
        return merged + offset if torch.is_grad_enabled() else merged


def add_sequences(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """(views, P_1, D) + (views, P_2, D) with the shorter one padded with zeros; the longer one is changed in place."""
    longer, shorter = (first, second) if first.shape[1] >= second.shape[1] else (second, first)
    longer[:, : shorter.shape[1]] += shorter
    return longer


def layer_merges(config: PreTrainedConfig) -> nn.ModuleList:
    width, outputs = config.text_config.hidden_size, config.vision_config.encoder_outputs
    return nn.ModuleList(LayerMerge(output.num_layers, output.width, width) for output in outputs)


@register_projector("summation")
class SummationProjector(Projector):
    """`W gelu(Σ_e Σ_l c_el W_el LN_el(x_el)) + b` over all layers l of all encoders e; shorter sequences are padded
    with zeros. The paper's best mix. P = max P_e."""

    reads_all_layers = True

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.merges = layer_merges(config)
        self.act = nn.GELU()
        self.linear = nn.Linear(config.text_config.hidden_size, config.text_config.hidden_size)

    def forward(self, features: Iterable[torch.Tensor]) -> torch.Tensor:
        features = iter(features)
        merged = reduce(add_sequences, (merge(features) for merge in self.merges))  # (views, P, D)
        return self.linear(self.act(merged))  # (views, P, D)


@register_projector("attention")
class AttentionProjector(Projector):
    """`W gelu(attention(query=Q, key=value=[gelu(m_1) | … | gelu(m_N)])) + b` with `m_e = Σ_l c_el W_el LN_el(x_el)`.

    Q is a trained matrix whose rows become the visual tokens: the reading of the paper that gives its 576 tokens."""

    reads_all_layers = True

    @staticmethod
    def num_tokens(config: PreTrainedConfig) -> int:
        return config.projector_num_queries

    @staticmethod
    def attention_width(config: PreTrainedConfig) -> int:
        return config.text_config.hidden_size

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        width = self.attention_width(config)
        self.merges = layer_merges(config)
        self.act = nn.GELU()
        self.queries = nn.Parameter(torch.empty(config.projector_num_queries, width))
        self.attention = ProjectorAttention(config, width)
        self.linear = nn.Linear(width, width)
        self.init_parameters()

    def init_parameters(self):
        init.normal_(self.queries, std=0.02)

    def forward(self, features: Iterable[torch.Tensor]) -> torch.Tensor:
        features = iter(features)
        sequence = torch.cat([self.act(merge(features)) for merge in self.merges], dim=1)  # (views, ΣP_e, D)
        queries = self.queries.expand(len(sequence), -1, -1)  # (views, Q, D)
        return self.linear(self.act(self.attention(queries, sequence)))  # (views, Q, D)


__all__ = ["PROJECTORS", "Projector", "register_projector"]
