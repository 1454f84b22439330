# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Muon for the matrices inside the layers and AdamW for everything else, as one optimiser that Trainer can drive.

torch's Muon takes matrices only; embeddings, heads, norms and biases are AdamW's by its authors' advice.
"""

import torch


class MuonWithAdamW(torch.optim.Optimizer):
    """One learning rate for both: Muon's updates are scaled to the size of AdamW's.

    Args:
        model: its trained parameters are taken; matrices of numbered layers go to Muon.
        lr: of both.
        weight_decay: of both.
        betas: of AdamW.
    """

    def __init__(self, model: torch.nn.Module, lr: float, weight_decay: float = 0.0, betas=(0.9, 0.98)):
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        matrices = [p for name, p in named if is_inner_matrix(name, p)]
        others = [p for name, p in named if not is_inner_matrix(name, p)]
        if not matrices:
            raise ValueError("optimizer `muon` trains matrices of layers, and this stage trains none; leave it out.")
        self.parts = [
            torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay, betas=betas),
        ]
        super().__init__([{"params": matrices}, {"params": others}], {"lr": lr})
        self._share_groups()

    def _share_groups(self):
        # the very dicts of the parts: a schedule that writes a learning rate here writes it there
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure=None):
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict):
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()


def is_inner_matrix(name: str, parameter: torch.Tensor) -> bool:
    """A matrix of a numbered layer (`layers.3.…`); Swin's table of position biases is a look-up, not a matrix."""
    return parameter.ndim == 2 and "layer" in name and "bias_table" not in name
