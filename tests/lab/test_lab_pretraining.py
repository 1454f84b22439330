"""lab/pretraining.py and both pretrainings: interrupted runs continue, targets are right."""

import torch

from lab import pretrain_encoder, pretrain_llm, pretraining
from lab.canvas import CLASSES, GRID, Drawing
from lab.tokenizer import build_tokenizer
from lab.world import render


class Numbers(torch.utils.data.IterableDataset):
    def __init__(self, start: int):
        self.start = start

    def __iter__(self):
        for step in range(self.start, 1 << 20):
            yield torch.randn(8, 4, generator=torch.Generator().manual_seed(step))


def fitted(out, *stops: int, monkeypatch) -> torch.Tensor:
    """The weights after training up to each of `stops` in turn, the schedule always that of the last."""
    monkeypatch.setattr(pretraining, "get_cosine_schedule_with_warmup", constant_schedule)
    for stop in stops:
        torch.manual_seed(0)
        model = torch.nn.Sequential()
        model.layer = torch.nn.Linear(4, 4)
        pretraining.fit(model, lambda x, m=model: (m.layer(x) - x.flip(1)).square().mean(), Numbers, out, stop, 1e-2)
    return model.layer.weight.detach()


def constant_schedule(optimizer, *unused):
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path, monkeypatch):
    whole = fitted(tmp_path / "whole", 6, monkeypatch=monkeypatch)
    resumed = fitted(tmp_path / "resumed", 3, 6, monkeypatch=monkeypatch)
    assert torch.equal(whole, resumed)
    assert not torch.equal(whole, fitted(tmp_path / "short", 3, monkeypatch=monkeypatch))  # control


def test_each_token_predicts_the_cells_that_it_covers():
    """A head that names class t for all cells of token t must give a map of 6 x 6 blocks in reading order."""
    model = pretrain_encoder.DenseReader(pretrain_encoder.donut_swin(32, (1, 1, 1)))
    tokens = torch.nn.functional.one_hot(torch.arange(36), len(CLASSES)).float()

    class Named(torch.nn.Module):
        def forward(self, hidden):
            return tokens.repeat(1, model.sub**2).expand(len(hidden), -1, -1)

    model.head = Named()
    named = model(torch.zeros(1, 3, pretrain_encoder.SIZE, pretrain_encoder.SIZE))[0].argmax(-1)[0]
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    assert torch.equal(named, rows // 4 * 6 + columns // 4)


def test_rows_of_cells_place_every_thing():
    drawing = Drawing("scene", None, None, {}, [("red star", 10, 10), ("blue circle", 180, 180)])
    cells = pretrain_llm.rows_of_cells(drawing).split()
    assert cells[:2] == ["red", "star"] and cells[-2:] == ["blue", "circle"]
    assert len(cells) == 72 and cells.count(".") == 68
    drawing.marks.append(("black cross", 12, 12))
    assert pretrain_llm.rows_of_cells(drawing) is None


def test_only_answers_have_labels():
    tokenizer = build_tokenizer()
    data = pretrain_llm.Dialogs(tokenizer, 2, 0)
    ids, labels = data.sample(pretrain_llm.Random(0), render("train", "text", 1, length=3))
    answer = [i for i in labels if i != -100]
    assert tokenizer.decode(answer) == render("train", "text", 1, length=3).facts["text"] + "</s>"
    assert ids[-len(answer) :] == answer and labels[: -len(answer)] == [-100] * (len(ids) - len(answer))
