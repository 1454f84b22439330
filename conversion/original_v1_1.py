"""The release's computation, reimplemented from its description with stock parts, independent of omnifusion_hf.

It is the reference of verify_conversion.py and of the tests, made of SentencePiece, Pillow, transformers' CLIP and
Mistral, and torch's TransformerEncoderLayer. Intended differences: eval mode, compared ids, text-only prompts
(docs/conversion.md, "What differs, and why").
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sentencepiece import SentencePieceProcessor
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionModel

from .encoders import preprocessing_of
from .release_v1_1 import Release


PROMPT = "This is a dialog with AI assistant.\n"
README = {"do_sample": False, "max_new_tokens": 50, "early_stopping": True, "num_beams": 3, "no_repeat_ngram_size": 4}
README |= {"repetition_penalty": 1.0, "remove_invalid_values": True, "forced_eos_token_id": 2, "use_cache": True}
README |= {"eos_token_id": 2, "pad_token_id": 2}


@dataclass
class Original:
    """The release in float32 on the CPU (or as given), in eval mode."""

    tokenizer: SentencePieceProcessor
    vision_tower: CLIPVisionModel
    projection: nn.Module
    llm: nn.Module
    vectors: dict[str, torch.Tensor]
    preprocessing: dict

    @classmethod
    def load(cls, source: Path, vision: Path, dtype: torch.dtype = torch.float32) -> "Original":
        release = Release.find(source)
        module = release.read_projection()
        state = module.tensors()
        width, heads = state["linear.weight"].shape[1], module.transformer_layer.self_attn.num_heads
        projection = nn.ModuleDict(
            {
                "transformer_layer": nn.TransformerEncoderLayer(
                    width, heads, state["transformer_layer.linear1.bias"].shape[0], batch_first=True, norm_first=False
                ),
                "linear": nn.Linear(width, state["linear.weight"].shape[0]),
            }
        )
        projection.load_state_dict(state)
        llm = AutoModelForCausalLM.from_pretrained(release.llm_config.parent, dtype=dtype)
        vectors = release.read_special_vectors(llm.config.hidden_size)
        config = AutoConfig.from_pretrained(vision)
        tower = CLIPVisionModel.from_pretrained(vision, config=getattr(config, "vision_config", config), dtype=dtype)
        return cls(
            SentencePieceProcessor(model_file=str(release.tokenizer)),
            tower.eval(),
            projection.to(dtype).eval(),
            llm.eval(),
            {name: vector.to(dtype) for name, vector in vectors.items()},
            preprocessing_of(vision),
        )

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """(3, S, S): shortest edge to S, centre crop, bicubic, normalised."""
        crop = self.preprocessing["crop_size"]
        side = crop["height"] if isinstance(crop, dict) else crop
        width, height = image.size
        short = min(width, height)
        width, height = int(side * width / short), int(side * height / short)
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - side) // 2, (height - side) // 2
        values = np.asarray(resized.crop((left, top, left + side, top + side)), dtype=np.float64) / 255
        mean, std = (np.asarray(self.preprocessing[key]) for key in ("image_mean", "image_std"))
        return torch.from_numpy(((values - mean) / std).transpose(2, 0, 1)).float()

    @torch.no_grad()
    def visual_tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """(P, D): hidden state -2 without CLS, one transformer layer, a linear map."""
        pixels = pixels[None].to(self.vision_tower.dtype)
        hidden = self.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        return self.projection["linear"](self.projection["transformer_layer"](hidden))[0]

    @torch.no_grad()
    def embeddings(self, image: Image.Image | None, question: str) -> torch.Tensor:
        """(1, L, D): system line, image between SOI and EOI, question between USER and BOT; no BOS."""
        parts = [self._embed(PROMPT)]
        if image is not None:
            parts += [self.vectors["SOI"][None], self.visual_tokens(self.pixels(image)), self.vectors["EOI"][None]]
        parts += [self.vectors["USER"][None], self._embed(question), self.vectors["BOT"][None]]
        return torch.cat(parts)[None]

    def _embed(self, text: str) -> torch.Tensor:
        return self.llm.get_input_embeddings()(torch.tensor(self.tokenizer.encode(text)))

    @torch.no_grad()
    def outputs(self, image: Image.Image | None, question: str) -> dict[str, torch.Tensor]:
        """All compared stages, and the ids of greedy and beam search with the README's settings."""
        embeddings = self.embeddings(image, question)
        output = self.llm(inputs_embeds=embeddings, output_hidden_states=True)
        mask = torch.ones(embeddings.shape[:2], dtype=torch.long)
        newline, colon = self.tokenizer.encode(["\n", ":"])
        bad_words = {"bad_words_ids": [newline, [2], colon, newline[-1:]]}
        beam, greedy = (
            self.llm.generate(inputs_embeds=embeddings, attention_mask=mask, **(README | bad_words | change))[0]
            for change in ({}, {"num_beams": 1, "early_stopping": False})
        )
        stages = {"embeddings": embeddings[0], "last hidden state": output.hidden_states[-1][0]}
        if image is not None:
            pixels = self.pixels(image)
            stages = {"pixels": pixels, "visual tokens": self.visual_tokens(pixels)} | stages
        return stages | {"logits": output.logits[0], "greedy ids": greedy, "beam-3 ids": beam}
