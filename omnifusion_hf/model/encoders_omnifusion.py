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
"""The families of vision encoders: what a configuration needs to know of each (paper, encoder table)."""

from dataclasses import dataclass

from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)


@dataclass(frozen=True)
class EncoderFamily:
    """What the files need to know of a family of transformers' vision models.

    prefix_tokens: tokens in front of the patches (CLS), dropped by `vision_feature_select_strategy="default"`.
    image_mean, image_std: the published normalisation, used where a checkpoint brings no image processor.
    feature_layer: the hidden state that is used where none is asked for (paper, encoder table).
    """

    prefix_tokens: int
    image_mean: list[float]
    image_std: list[float]
    feature_layer: int = -2

    @property
    def normalization(self) -> dict[str, list[float]]:
        return {"image_mean": list(self.image_mean), "image_std": list(self.image_std)}


ENCODER_FAMILIES = {
    "clip_vision_model": EncoderFamily(1, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    "siglip_vision_model": EncoderFamily(0, IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD),
    "dinov2": EncoderFamily(1, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    "internvl_vision": EncoderFamily(1, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, feature_layer=-1),
    "donut-swin": EncoderFamily(0, IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD, feature_layer=-1),
}


def published_normalization(name: str) -> dict[str, list[float]]:
    """Mean and standard deviation of an encoder's own image processor; empty where it brings none."""
    try:
        processor, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:
        return {}
    return {key: processor[key] for key in ("image_mean", "image_std") if processor.get(key)}
