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
    """The weights after training up to each of `stops` in turn, at a constant rate."""
    constant = lambda optimizer, *_: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)  # noqa: E731
    monkeypatch.setattr(pretraining, "get_cosine_schedule_with_warmup", constant)
    for stop in stops:
        torch.manual_seed(0)
        model = torch.nn.Sequential()
        model.layer = torch.nn.Linear(4, 4)
        pretraining.fit(model, lambda x, m=model: (m(x) - x.flip(1)).square().mean(), Numbers, out, stop, 1e-2)
    return model.layer.weight.detach()


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path, monkeypatch):
    runs = {"whole": [6], "resumed": [3, 6], "short": [3]}  # the last is the control
    weights = [fitted(tmp_path / name, *stops, monkeypatch=monkeypatch) for name, stops in runs.items()]
    assert torch.equal(*weights[:2]) and not torch.equal(*weights[1:])


def test_each_token_predicts_the_cells_that_it_covers():
    """A head that names class t for all cells of token t must give a map of 6 x 6 blocks in reading order."""
    model = pretrain_encoder.DenseReader(pretrain_encoder.donut_swin(32, (1, 1, 1)))
    tokens = torch.nn.functional.one_hot(torch.arange(36), len(CLASSES)).float()
    del model.head
    model.head = lambda hidden: tokens.repeat(1, model.sub**2).expand(len(hidden), -1, -1)
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
    tokenizer, drawing = build_tokenizer(), render("train", "text", 1, length=3)
    ids, labels = pretrain_llm.Dialogs(tokenizer, 2, 0).sample(pretrain_llm.Random(0), drawing)
    answer = [i for i in labels if i != -100]
    assert tokenizer.decode(answer) == drawing.facts["text"] + "</s>"
    assert ids[-len(answer) :] == answer and labels[: -len(answer)] == [-100] * (len(ids) - len(answer))
