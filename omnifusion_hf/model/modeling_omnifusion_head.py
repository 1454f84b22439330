# Copyright 2026 The omnifusion_hf authors. All rights reserved.
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance with
# the License. You may obtain a copy of the License at http://www.apache.org/licenses/LICENSE-2.0 Unless required by
# applicable law or agreed to in writing, software distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the License for the specific language
# governing permissions and limitations under the License.
"""From hidden states to logits, and which labels can be predicted.

Provenance: own code; the scales of logits are those of transformers' Cohere, Granite and Gemma 2.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import torch_compilable_check

from .configuration_omnifusion import OmniFusionConfig


def scale_logits(logits: torch.Tensor, text_config: PreTrainedConfig) -> torch.Tensor:
    """Logit scaling after lm_head (Cohere, Granite, Gemma 2) of logits (…, vocab)."""
    if getattr(text_config, "logit_scale", None) is not None:
        logits = logits * text_config.logit_scale
    if getattr(text_config, "logits_scaling", None) is not None:
        logits = logits / text_config.logits_scaling
    cap = getattr(text_config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def predict(hidden_states: torch.Tensor, head: nn.Module, config: OmniFusionConfig) -> torch.Tensor:
    """Logits (…, vocab) of hidden states (…, D)."""
    logits = scale_logits(head(hidden_states), config.text_config)
    # CODEPATH: set in conversions of the authors' v1.1, whose vocabulary had no special tokens
    if config.predicted_vocab_size is not None:
        logits[..., config.predicted_vocab_size :] = torch.finfo(logits.dtype).min
    return logits


def check_labels(labels: torch.LongTensor | None, config: OmniFusionConfig):
    """Raises `ValueError` for a label whose row is never predicted: its loss would be infinite."""
    rows = config.predicted_vocab_size
    if rows is not None and labels is not None:
        check(
            (labels < rows).all(),
            lambda: (
                f"Label {labels.max().item()} is never predicted: config.predicted_vocab_size is {rows}. Set it to "
                "None to teach tokens that were added (resize_token_embeddings does), or mask the label with -100."
            ),
        )


def check(condition: torch.Tensor, message: Callable[[], str]):
    """Raises `ValueError`, in a compiled graph `RuntimeError`, unless a condition of values holds."""
    if torch.compiler.is_dynamo_compiling():
        # Not transformers' check: it breaks the graph of torch 2.11. Dynamo puts an assertion into the graph.
        assert condition, "an input is wrong; call the model itself to read how"  # trf-ignore: TRF027
    else:
        torch_compilable_check(condition, message)
