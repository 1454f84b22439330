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
"""The adapters of paper section 3.2: patch features per encoder to visual tokens of the LLM's width.

Every adapter is built from a configuration and maps a list of (views, P, d_e), one per encoder, to (views, P, D).
"""

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_omnifusion import OmniFusionConfig


class MlpProjector(nn.Module):
    """`W2 gelu(W1 [x_1; …; x_N] + b1) + b2`: two linear layers with GELU between. The paper's best for one encoder."""

    def __init__(self, config: OmniFusionConfig):
        super().__init__()
        width = config.text_config.hidden_size
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, width)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(width, width)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        hidden_states = torch.cat(features, dim=-1)  # (views, P, Σd)
        return self.linear_2(self.act(self.linear_1(hidden_states)))  # (views, P, D)


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Reference attention; `attention_mask` is part of the backends' signature, the adapter sees whole views."""
    weights = torch.matmul(query, key.transpose(-1, -2)) * scaling  # (views, heads, P, P)
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class ProjectorAttention(nn.Module):
    """Multi-head self-attention from Linear layers: serving engines replace those, not nn.MultiheadAttention."""

    def __init__(self, config: OmniFusionConfig, width: int):
        super().__init__()
        self.config = config
        self.is_causal = False
        self.head_dim = width // config.projector_num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = config.projector_dropout
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            projection(hidden_states).view(shape).transpose(1, 2)  # (views, heads, P, head_dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.dropout if self.training else 0.0
        output, _ = attend(self, query, key, value, None, scaling=self.scaling, dropout=dropout, is_causal=False)
        return self.o_proj(output.reshape(*hidden_states.shape))  # (views, P, d)


class ProjectorLayer(nn.Module):
    """PyTorch's `TransformerEncoderLayer(norm_first=False)`: post-norm, ReLU, dropout in four places."""

    def __init__(self, config: OmniFusionConfig, width: int):
        super().__init__()
        self.self_attn = ProjectorAttention(config, width)
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, config.projector_intermediate_size)
        self.linear2 = nn.Linear(config.projector_intermediate_size, width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.projector_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.norm1(hidden_states + self.dropout(self.self_attn(hidden_states)))
        feed_forward = self.linear2(self.dropout(nn.functional.relu(self.linear1(hidden_states))))
        return self.norm2(hidden_states + self.dropout(feed_forward))  # (views, P, d)


class TransformerProjector(nn.Module):
    """`W layer([x_1; …; x_N]) + b`: a transformer layer over the visual tokens, then a linear map. Used by v1.1."""

    def __init__(self, config: OmniFusionConfig):
        super().__init__()
        self.transformer_layer = ProjectorLayer(config, config.vision_config.hidden_size)
        self.linear = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        hidden_states = torch.cat(features, dim=-1)  # (views, P, Σd)
        return self.linear(self.transformer_layer(hidden_states))  # (views, P, D)


PROJECTORS = {"mlp": MlpProjector, "transformer": TransformerProjector}
