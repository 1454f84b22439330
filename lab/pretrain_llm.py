"""Pretrains the tiny Mistral on text: the contents of an image as rows of cells, then questions and answers about it.

Cells have the order of the encoder's tokens (row by row, two slots per token), so the LLM learns counting, comparing
places and spelling before its first image. Wording and chat format are those of the later dialogs.
"""

import argparse
from functools import partial
from pathlib import Path
from random import Random

import torch
from torch.utils.data import IterableDataset, get_worker_info
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from omnifusion_hf.io import staged_folder

from .canvas import SIDE, Drawing
from .pretraining import fit
from .questions import conversation
from .tokenizer import build_tokenizer
from .world import render


SHARES = {"scene": 0.48, "digit": 0.02, "text": 0.22, "formula": 0.28}
SLOTS = 12  # per row; a thing's two words fill two slots
POOL = 10  # batches that are drawn together and sorted by length, for little padding
SYSTEM = "This is a dialog with AI assistant.\n"


def tiny_mistral(vocab_size: int, width: int = 192, layers: int = 5) -> MistralForCausalLM:
    config = MistralConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 64,
        head_dim=32,
        max_position_embeddings=1024,
        sliding_window=None,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="eager",
    )
    return MistralForCausalLM(config)


def rows_of_cells(drawing: Drawing) -> str | None:
    """The marks as rows of slots, "." for an empty one; None if two marks collide. Only scenes keep empty rows."""
    tall = 12 if drawing.kind == "formula" else 6
    rows = [["."] * SLOTS for _ in range(tall)]
    for words, x, y in drawing.marks:
        row, column = int(y * tall / SIDE), int(x * SLOTS / SIDE)
        parts = words.split()
        column -= column % 2 if len(parts) == 2 else 0
        for i, part in enumerate(parts):
            if rows[row][column + i] != ".":
                return None
            rows[row][column + i] = part
    return "".join(" " + c for row in rows if drawing.kind == "scene" or set(row) != {"."} for c in row)


class Dialogs(IterableDataset):
    """Endless batches of (input_ids, labels), padded to the longest; only answers and their EOS have labels."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, batch_size: int, start: int):
        self.tokenizer, self.batch_size, self.start = tokenizer, batch_size, start

    def __iter__(self):
        worker = get_worker_info()
        first, step = self.start // POOL, worker.num_workers if worker else 1
        for pool in range(first + (worker.id if worker else 0), 1 << 40, step):
            rng = Random(f"text/{pool}")
            samples = []
            while len(samples) < POOL * self.batch_size:
                kind = rng.choices(list(SHARES), SHARES.values())[0]
                sample = self.sample(rng, render("train", kind, rng.randrange(1 << 40)))
                samples += [sample] if sample else []
            samples.sort(key=lambda s: len(s[0]))
            for i in rng.sample(range(POOL), POOL):
                yield collate(samples[i * self.batch_size : (i + 1) * self.batch_size])

    def sample(self, rng: Random, drawing: Drawing) -> tuple[list[int], list[int]] | None:
        cells = rows_of_cells(drawing)
        if cells is None:
            return None
        ids = self._encode(SYSTEM) + self._encode(cells + "\n")
        labels = [-100] * len(ids)
        for turn in conversation(rng, drawing):
            question, answer = self._encode(turn.question + "\n"), self._encode(turn.answer)
            answer.append(self.tokenizer.eos_token_id)
            ids += question + answer
            labels += [-100] * len(question) + answer
        return ids, labels

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)


def collate(samples: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    longest = -(-max(len(ids) for ids, _ in samples) // 16) * 16  # few shapes: oneDNN keeps buffers for each
    return {
        "input_ids": torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in samples]),
        "labels": torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in samples]),
    }


def train(out: Path, steps: int = 1300, batch_size: int = 32, lr: float = 2e-3) -> None:
    """Pretrains model and tokenizer to `out`/llm; an interrupted run continues from `out`/state."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = tiny_mistral(len(tokenizer))
    fit(model, lambda batch: model(**batch).loss, partial(Dialogs, tokenizer, batch_size), out, steps, lr)
    with staged_folder(out / "llm") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("lab/out/llm"))
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    train(args.out, args.steps, args.batch_size, args.lr)
