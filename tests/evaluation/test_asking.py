"""evaluation/asking.py: batches change no answer, a killed run goes on, answers of other questions are not taken."""

import conversations
import pytest
import tiny
import torch
from conversations import sample, turn
from PIL import ExifTags, Image
from tqdm import tqdm

from omnifusion_hf.evaluation import asking
from omnifusion_hf.evaluation.answers import Answer, AnswerLog, read_answers
from omnifusion_hf.evaluation.asking import (
    AS_IT_IS,
    Asker,
    model_facts,
    model_hash,
    open_log,
    opened,
    present_as_it_is,
)
from omnifusion_hf.evaluation.questions import Question, read_questions
from omnifusion_hf.inference import generate_text, prompts


@pytest.fixture
def questions(tmp_path):
    """Of different lengths, about no, one and two images."""
    samples = [sample(index) for index in range(5)]
    samples[1]["image"] = ["1.png", "2.png"]
    samples[1]["conversations"] = [turn("human", "Is <image> a longer question than <image> is?"), turn("gpt", "No.")]
    samples[3]["conversations"] = [turn("human", "Hello?"), turn("gpt", "Hello.")]
    del samples[3]["image"]
    return read_questions(conversations.write(tmp_path, samples))


def ask(model, processor, log_path, questions, **options) -> list:
    asker = Asker(model, processor, AnswerLog(log_path), max_new_tokens=6, **options)
    with tqdm(disable=True) as bar:
        asker.ask(questions, AS_IT_IS, present_as_it_is(processor), bar)
    return asker.answers(questions, [AS_IT_IS])


def test_the_batch_size_changes_no_answer(model, processor, questions, tmp_path):
    answers = [ask(model, processor, tmp_path / f"{n}.jsonl", questions, batch_size=n) for n in (1, 2, 5)]
    assert answers[0] == answers[1] == answers[2]
    assert len({answer.answer for answer in answers[0]}) > 1  # control: images and questions matter
    alone = prompts(processor, [opened(processor, questions[1])])
    assert answers[0][1].answer == generate_text(model, alone, processor, 6)[0]


def test_a_killed_run_goes_on(model, processor, questions, tmp_path, monkeypatch):
    whole = ask(model, processor, tmp_path / "whole.jsonl", questions, batch_size=2)
    calls = []

    def killed(*args):
        calls.append(len(args[1]["input_ids"]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate_text(*args)

    monkeypatch.setattr(asking, "generate_text", killed)
    with pytest.raises(KeyboardInterrupt):
        ask(model, processor, tmp_path / "answers.jsonl", questions, batch_size=2)
    assert len(read_answers(tmp_path / "answers.jsonl")) == 2
    assert ask(model, processor, tmp_path / "answers.jsonl", questions, batch_size=2) == whole
    assert calls == [2, 2, 2, 1]  # the first two were not asked again
    assert (tmp_path / "answers.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_answers_of_other_questions_are_not_taken(model, processor, questions, tmp_path):
    ask(model, processor, tmp_path / "answers.jsonl", questions[:1])
    asked = [turn("human", "<image>\nAnd this?"), turn("gpt", "No.")]
    for other in (sample(0, conversations=asked), sample(0, image="1.png")):
        path = conversations.write(tmp_path, [other, sample(1)])
        with pytest.raises(ValueError, match="answers another question, .* named 's0'"):
            ask(model, processor, tmp_path / "answers.jsonl", read_questions(path))
    path = conversations.write(tmp_path, [sample(0), sample(1)])
    assert len(ask(model, processor, tmp_path / "answers.jsonl", read_questions(path))) == 2


def test_images_stand_as_viewers_show_them(processor, tmp_path):
    """A photo that was taken upright lies in its file, and says so: what changes it gets it upright."""
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    tiny.image(0, (40, 90)).save(tmp_path / "upright.jpg", exif=turned)  # (H, W)
    shown = {"role": "user", "content": [{"type": "image", "image": tmp_path / "upright.jpg"}]}
    sizes = []
    ((part,),) = (
        message["content"]
        for message in opened(processor, Question("0", "t", [shown], "x"), lambda p, _: sizes.append(p.size) or p)
    )
    assert part["image"].size == (40, 90) and sizes == [(40, 90)]


def test_answers_under_other_settings_are_not_mixed(tmp_path):
    open_log(tmp_path / "out", {"model": "misspelt", "seed": 0})  # nothing was answered
    open_log(tmp_path / "out", {"model": "a", "seed": 0}).add([Answer("0", "t", "?", [], ["x"], "x", 1.0)])
    assert len(open_log(tmp_path / "out", {"model": "a", "seed": 0}).answers) == 1
    with pytest.raises(ValueError, match="model='a', now it is 'b'"):
        open_log(tmp_path / "out", {"model": "b", "seed": 0})
    for text, message in (('{"model', "settings.json is not JSON"), ("[]", "settings.json holds no settings")):
        (tmp_path / "out/settings.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            open_log(tmp_path / "out", {"model": "a", "seed": 0})
    (tmp_path / "out/settings.json").unlink()
    with pytest.raises(ValueError, match="model=None, now it is 'a'"):
        open_log(tmp_path / "out", {"model": "a", "seed": 0})


def test_a_model_that_was_replaced_is_another_one(processor):
    """Its name alone does not tell: weights, dtype, configuration, settings of `generate` and processor do."""
    model = tiny.model(tiny.config())
    before = model_facts(model, processor)
    assert model_facts(model, processor) == before
    changed = []
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    changed.append(model_facts(model, processor))
    model.generation_config.repetition_penalty = 1.5
    changed.append(model_facts(model, processor))
    changed.append(model_facts(model.to(torch.bfloat16), processor))
    assert len({facts["model_sha256"] for facts in (before, *changed)}) == 4
    assert [facts["dtype"] for facts in (before, changed[-1])] == ["float32", "bfloat16"]
    other = model_facts(model, tiny.processor(model.config, view_strategy="grid"))
    assert other["processor_sha256"] != before["processor_sha256"]


def test_quantised_weights_count_as_well():
    torchao = pytest.importorskip("torchao.quantization", reason="pip install torchao; no quantised weight was hashed")
    model = tiny.model(tiny.config())
    torchao.quantize_(model.model.language_model, torchao.Int8WeightOnlyConfig(version=2))
    weights = [weight for weight in model.state_dict().values() if hasattr(weight, "qdata")]
    before = model_hash(model)
    assert weights and model_hash(model) == before
    weights[0].qdata[0, 0] ^= 1
    assert model_hash(model) != before
