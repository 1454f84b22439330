"""evaluation/asking.py: many questions at once. Whole files, runs that are stopped or shared among processes."""

from types import SimpleNamespace

import conversations
import data_files
import pytest
import ranks
import tiny
from conversations import turn
from training_runs import launch

from omnifusion_hf.cli import main
from omnifusion_hf.evaluation import answers as module
from omnifusion_hf.evaluation.answers import AnswerLog, read_answers
from omnifusion_hf.evaluation.asking import ask_questions, join, share_of
from omnifusion_hf.evaluation.questions import read_questions
from omnifusion_hf.inference import answer_question, generate_text


OPTIONS = {"batch_size": 2, "max_new_tokens": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Questions about one, no and two images in turn; every third has a second turn."""
    folder = tmp_path_factory.mktemp("questions")
    return conversations.write(folder, data_files.mixed(6))


@pytest.fixture(scope="module")
def whole(data, model_folder, tmp_path_factory) -> bytes:
    """The file of answers of a run that nothing stops."""
    output = tmp_path_factory.mktemp("whole") / "answers.jsonl"
    ask_questions(read_questions(data), output, model_folder, **OPTIONS)
    return output.read_bytes()


def ask(data, output, model, *options: str) -> int:
    return main(["ask", "--data", str(data), "-o", str(output), "--model", str(model), *options])


def test_answers_are_those_of_single_questions_in_the_order_of_the_file(data, whole, model, processor, tmp_path):
    (tmp_path / "answers.jsonl").write_bytes(whole)
    answers, questions = read_answers(tmp_path / "answers.jsonl"), read_questions(data)
    assert [answer.name for answer in answers] == [question.name for question in questions]
    single = [(answer, question) for answer, question in zip(answers, questions) if len(question.messages) == 1]
    for answer, question in single:
        assert answer.answer == answer_question(model, processor, question.images, question.text, 4)
    assert len({answer.answer for answer in answers}) > 2  # control: questions and images matter


def test_the_command_writes_that_file_and_does_not_replace_it(data, whole, model_folder, tmp_path, capsys):
    command = [data, tmp_path / "answers.jsonl", model_folder, "--max-new-tokens", "4"]
    assert ask(*command) == 0 and (tmp_path / "answers.jsonl").read_bytes() == whole
    assert "answers.jsonl: 8 answers" in capsys.readouterr().out
    assert ask(*command) == 2 and "exists and is not replaced" in capsys.readouterr().err


def test_processes_of_a_launcher_share_the_questions(data, whole, model_folder, tmp_path):
    command = ["-m", "omnifusion_hf.cli", "ask", "--data", data, "--model", model_folder, "--max-new-tokens", "4"]
    launch("ddp", *command, "-o", tmp_path / "answers.jsonl", "--device", "cpu")
    assert (tmp_path / "answers.jsonl").read_bytes() == whole


def stop_after(batches: int, monkeypatch) -> list:
    """Interrupts the generation of a later batch; returns the list that counts batches."""
    calls = []

    def generate(*arguments):
        calls.append(arguments)
        if len(calls) > batches:
            raise KeyboardInterrupt
        return generate_text(*arguments)

    monkeypatch.setattr(module, "generate_text", generate)
    return calls


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stopped_run_continues_also_on_two_processes(data, whole, model_folder, tmp_path, monkeypatch, processes):
    output, questions = tmp_path / "answers.jsonl", read_questions(data)
    stop_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        ask_questions(questions, output, model_folder, **OPTIONS)
    assert not output.exists() and len(read_answers(tmp_path / "answers.jsonl.part/0.jsonl")) == 4
    if processes == 2:
        assert ranks.ask_on_ranks(data, output, model_folder, **OPTIONS) == [0, 0]
    else:
        calls = stop_after(100, monkeypatch)
        ask_questions(questions, output, model_folder, **OPTIONS)
        assert len(calls) == -(-(len(questions) - 4) // 2)
    assert output.read_bytes() == whole and not (tmp_path / "answers.jsonl.part").exists()


def test_processes_share_whole_batches_the_longest_first(data, processor):
    questions = read_questions(data)
    states = [SimpleNamespace(process_index=i, num_processes=2, is_main_process=False) for i in range(2)]
    shares = [share_of(questions, processor, 2, state) for state in states]
    names = [question.name for share in shares for question in share]
    assert sorted(names) == sorted(question.name for question in questions)
    assert all(len(share) >= 2 for share in shares)
    assert len(shares[0][0].images) == 2 and not shares[1][-1].images


def test_a_process_whose_log_is_not_seen_is_said(data, tmp_path):
    AnswerLog(tmp_path / "a.jsonl.part/0.jsonl")
    with pytest.raises(ValueError, match="a.jsonl.part lacks 8 answers; .* a disk that all processes share"):
        join(read_questions(data), tmp_path / "a.jsonl.part", tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists() and (tmp_path / "a.jsonl.part").exists()


def test_logs_of_another_run_are_not_continued(data, model_folder, tmp_path, monkeypatch, capsys):
    stop_after(1, monkeypatch)
    command = [data, tmp_path / "answers.jsonl", model_folder, "--batch-size", "2", "--max-new-tokens"]
    assert ask(*command, "4") == 130
    assert ask(*command, "5") == 2 and "max_new_tokens=4, now it is 5" in capsys.readouterr().err


def test_a_prompt_that_fills_the_context_is_named_before_the_first_answer(model_folder, tmp_path, capsys):
    samples = [conversations.sample(0), conversations.sample(1)]
    samples[1]["conversations"] = [turn("human", "word " * 5000), turn("gpt", "Yes.")]
    data = conversations.write(tmp_path, samples)
    assert ask(data, tmp_path / "answers.jsonl", model_folder) == 2
    assert "samples, s1: the prompt takes" in capsys.readouterr().err
    assert not (tmp_path / "answers.jsonl.part/0.jsonl").read_bytes()


def test_a_long_prompt_cuts_no_other_answer_of_its_batch(model_folder, tmp_path):
    samples = [conversations.sample(index) for index in range(3)]
    samples[2]["conversations"] = [turn("human", "word " * 92), turn("gpt", "Yes.")]
    data, lengths = conversations.write(tmp_path, samples), []
    for size in ("1", "3"):
        output = tmp_path / f"{size}.jsonl"
        assert ask(data, output, model_folder, "--batch-size", size, "--max-new-tokens", "64") == 0
        lengths.append([answer.answer for answer in read_answers(output)])
    assert lengths[0] == lengths[1]


def test_one_question_about_every_image_of_a_folder(model_folder, model, processor, tmp_path):
    (tmp_path / "photos/more").mkdir(parents=True)
    for index, name in enumerate(("b.png", "a.jpg", "more/c.png")):
        tiny.image(index).save(tmp_path / "photos" / name)
    for name in ("notes.txt", "invoice.pdf", "clip.mpg"):
        (tmp_path / "photos" / name).write_text("no image")
    output = tmp_path / "answers.jsonl"
    command = ["ask", str(tmp_path / "photos"), "What?", "--model", str(model_folder), "--max-new-tokens", "4"]
    assert main([*command, "-o", str(output)]) == 0
    answers = read_answers(output)
    assert [answer.name for answer in answers] == ["a.jpg", "b.png", "more/c.png"]
    assert {(answer.score, *answer.truth) for answer in answers} == {(None,)}
    assert answers[1].answer == answer_question(model, processor, [tmp_path / "photos/b.png"], "What?", 4)


TOGETHER = ["--data q.json", "-o a.jsonl", ". What?", ". What? --data q.json -o a.jsonl", "q.png What? -o a.jsonl"]
TOGETHER += ["--data q.json -o a.jsonl --text-only", "--examples -o a.jsonl"]


@pytest.mark.parametrize("words", [*TOGETHER, ". What? --image-folder . -o a.jsonl"])
def test_options_that_do_not_go_together_are_refused(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["ask", *words.split()]) == 2
    assert "many questions are omnifusion ask --data QUESTIONS -o FILE.jsonl" in capsys.readouterr().err


def test_a_folder_without_images_is_refused(tmp_path, capsys):
    assert main(["ask", str(tmp_path), "What?", "-o", str(tmp_path / "a.jsonl")]) == 2
    assert "holds no image" in capsys.readouterr().err and not list(tmp_path.iterdir())
