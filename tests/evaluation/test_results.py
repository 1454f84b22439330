"""evaluation/results.py reads lmms-eval's output: scores by task and metric, answers as records."""

from pathlib import Path

import pytest
from lmms_results import POPE, RECORD, write_record, write_results, write_samples
from PIL import Image

from omnifusion_hf.evaluation import results
from omnifusion_hf.evaluation.answers import Answer
from omnifusion_hf.evaluation.results import Score, load_answers, read_models, read_sample_answers


@pytest.mark.parametrize("filelock, named", [("4.3.1", True), ("10.0", True), ("3.32.7", False)])
def test_missing_results_name_the_package_with_which_lmms_eval_fails(tmp_path, monkeypatch, filelock, named):
    monkeypatch.setattr(results, "version", lambda package: filelock)
    with pytest.raises(ValueError, match="may exit with 0 when it failed") as missing:
        read_models([str(tmp_path)])
    assert ("pip install 'filelock<4'" in str(missing.value)) is named


def test_extras_with_lmms_eval_have_the_filelock_that_it_needs():
    setup = (Path(__file__).parents[2] / "setup.py").read_text(encoding="utf-8")
    assert setup.count('"lmms-eval>=0.7.3"') == setup.count('"filelock<4"') == 2


def test_every_number_but_the_error_bars_is_a_score_and_a_limit_makes_it_partial(tmp_path):
    for asked in (9000, 10):
        documents = {"pope": {"original": 9000, "effective": asked}}
        scores = results.read_scores(write_results(tmp_path, **{"n-samples": documents}))
        wanted = ("pope_accuracy", 0.8, 0.02), ("pope_f1_score", 0.7, None)
        assert scores == [Score("pope", *each, asked, 9000) for each in wanted]
        assert [score.is_partial for score in scores] == [asked < 9000] * 2


def test_runs_of_a_model_are_merged_and_the_newest_counts(tmp_path):
    write_results(tmp_path / "a", "20260102_000000", {"gqa": {"exact_match,none": 0.6}})
    write_results(tmp_path / "a", "20260101_000000", {"gqa": {"exact_match,none": 0.1}, "pope": POPE})
    write_results(tmp_path / "b", model_name="org/other/")
    (tmp_path / "submissions").mkdir()
    (tmp_path / "submissions/mmbench_en_dev_results.json").write_text('{"overall_acc": 1}')  # as MMBench leaves
    mine, other = read_models([str(tmp_path)])
    assert (mine.name, other.name) == ("mine", "other")
    assert mine.scores["gqa", "exact_match"].value == 0.6 and mine.scores["pope", "pope_accuracy"].value == 0.8
    assert [file.name[:8] for file in mine.files] == ["20260101", "20260102"]


OTHERS = ["{}", "[1]", '{"results": 3}', '{"results": {"pope": null}}', '{"results": {}, "n-samples": {"pope": 3}}']
OTHERS += ['{"results": {}, "config": []}', "not JSON", '{"results": {}}'.encode("utf-16")]


def test_models_of_one_last_name_stay_apart_and_files_of_one_given_name_are_one_model(tmp_path):
    for run, value in (("a", 0.9), ("b", 0.1)):
        results = {"gqa": {"exact_match,none": value}}
        write_results(tmp_path / run, results=results, model_name=f"runs/{run}/merged")
        answers = tmp_path / f"{run}.jsonl"
        answers.write_text(Answer("q", f"task {run}", "?", [], ["x"], "x", value).as_line())
    apart = {model.name: model.scores["gqa", "exact_match"].value for model in read_models([str(tmp_path)])}
    assert apart == {"runs/a/merged": 0.9, "runs/b/merged": 0.1}
    assert [model.name for model in read_models([str(tmp_path / "a")])] == ["merged"]  # control: alone it is short
    (mine,) = read_models([f"mine={tmp_path / run}.jsonl" for run in "ab"])
    assert [task for task, _ in mine.scores] == ["task a", "task b"]


@pytest.mark.parametrize("text", OTHERS)
def test_another_file_is_refused_by_name(tmp_path, text):
    (tmp_path / "x.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match="x.json is not UTF-8" if isinstance(text, bytes) else "x.json"):
        results.read_result_file(tmp_path / "x.json")


def test_tables_that_are_null_count_as_absent_and_values_that_are_no_numbers_too(tmp_path):
    names = ("n-samples", "config", "configs", "higher_is_better")
    path = write_results(tmp_path, **dict.fromkeys(names))
    write_samples(tmp_path, "pope", [{}])
    assert results.read_scores(path)[0].documents is None and len(read_sample_answers(path)) == 1
    values = {"a,none": float("nan"), "b,none": float("inf"), "c,none": 0.5, "c_stderr,none": float("nan")}
    assert results.read_scores(write_results(tmp_path, results={"t": values})) == [Score("t", "c", 0.5)]


def test_a_model_without_a_name_gets_that_of_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (None, "", ".", "/"):
        path = write_results(Path("."), model_name=name)
        assert [model.name for model in read_models([path.name])] == [tmp_path.name]


BAD_ARGUMENTS = dict.fromkeys(("=results", "ours=", " =results"), "expected NAME=PATH or a path")
BAD_ARGUMENTS |= dict.fromkeys(("/no/x", "ours=/no/x"), "there is no /no/x")


def test_a_name_may_be_given_and_half_a_name_or_a_missing_path_is_refused(tmp_path):
    path = write_results(tmp_path / "odd=folder")
    assert [model.name for model in read_models([f"ours={path}", str(path)])] == ["ours", "mine"]
    for argument, message in BAD_ARGUMENTS.items():
        with pytest.raises(ValueError, match=message):
            read_models([argument])


def test_samples_become_answers_with_the_first_number_as_score(tmp_path):
    better = {"pope": {"pope_accuracy": True}, "tex": {"edit_distance": False}, "mmmu_val": {"mmmu_acc": True}}
    path = write_results(tmp_path, higher_is_better=better)
    write_samples(tmp_path, "pope", [{"pope_accuracy": {"score": 1.0}}, {"pope_accuracy": {"score": 0.0}}])
    write_samples(tmp_path, "tex", [{"edit_distance": 0.25, "target": "x^2", "filtered_resps": ["x^3"]}])
    mmmu = [{"mmmu_acc": {"parsed_pred": ["A"]}, "target": "['a', 'B']"}, {"target": "B"}]
    write_samples(tmp_path, "mmmu_val", mmmu)
    answers = {(answer.task, answer.name): answer for answer in read_sample_answers(path)}
    assert [answers["pope", name].score for name in "01"] == [1, 0]
    assert answers["tex", "0"].score == 0.75 and answers["tex", "0"].answer == "x^3"
    assert [answers["mmmu_val", name].score for name in "01"] == [1, 0]  # no number: exact match
    assert answers["mmmu_val", "0"].truth == ["a", "B"] and len(answers) == 5


def test_a_right_answer_that_was_not_logged_is_unknown(tmp_path):
    """VQA tasks name a column `answer` that their data lack; lmms-eval logs the name."""
    configs = {task: {"doc_to_target": "answer"} for task in ("vizwiz_vqa_val", "mmmu_val")}
    path = write_results(tmp_path, configs=configs, higher_is_better={"vizwiz_vqa_val": {"exact_match": True}})
    write_samples(tmp_path, "vizwiz_vqa_val", [{"target": "answer", "exact_match": 0.9}, {"exact_match": 0.3}])
    answers = read_sample_answers(path)
    assert [(answer.truth, answer.score) for answer in answers] == [([], 0.9), (["a"], 0.3)]
    write_samples(tmp_path, "mmmu_val", [{"target": "answer"}])
    with pytest.raises(ValueError, match="mmmu_val, 0"):
        read_sample_answers(path)


def test_samples_of_another_date_belong_to_another_run_and_are_read_like_a_file_of_answers(tmp_path):
    path = write_results(tmp_path)
    write_samples(tmp_path, "pope", [{}], date="20250101_000000")
    assert read_sample_answers(path) == []
    with pytest.raises(ValueError, match="--log_samples"):
        load_answers([str(tmp_path)])
    write_samples(tmp_path, "pope", [{}])  # answers of a file and of samples are read alike
    (sample,) = load_answers([str(tmp_path)])
    (tmp_path / "answers.jsonl").write_text(sample.as_line())
    assert load_answers([str(tmp_path / "answers.jsonl"), str(tmp_path)]) == [sample, sample]


def test_of_a_task_answered_twice_the_newest_counts(tmp_path):
    for folder, date, tasks in (("b", "20260101_000000", ["gqa", "pope"]), ("a", "20260102_000000", ["pope"])):
        write_results(tmp_path / folder, date)
        for task in tasks:
            write_samples(tmp_path / folder, task, [{"filtered_resps": date}], date)
    write_results(tmp_path / "c", "20260103_000000")  # without samples
    answers = load_answers([str(tmp_path / "b"), str(tmp_path / "a"), str(tmp_path / "c")])
    assert [(a.task, a.answer[:8]) for a in answers] == [("gqa", "20260101"), ("pope", "20260102")]
    named = load_answers([f"one={tmp_path}/a", f"two={tmp_path}/b"])  # other models: nothing is left out
    assert len(named) == 3


NO_SAMPLES = ['{"doc_id": 0, "input"', '{"doc_id": 0, "input": "q", "target": "a"}', "3", '{"input": 3}']


@pytest.mark.parametrize("line", NO_SAMPLES)
def test_a_line_that_is_not_a_sample_is_named(tmp_path, line):
    path = write_results(tmp_path)
    write_samples(tmp_path, "pope", [{}])
    with (tmp_path / "20260101_000000_samples_pope.jsonl").open("a") as file:
        file.write(line)
    with pytest.raises(ValueError, match="samples_pope.jsonl, line 2: this is not"):
        read_sample_answers(path)


def test_logged_images_are_found_in_their_order(tmp_path):
    (tmp_path / "kept/pope").mkdir(parents=True)
    for name in ("0-0", "0-1", "0-10", "1-0"):
        Image.new("RGB", (2, 2)).save(tmp_path / f"kept/pope/{name}.png")
    path = write_results(tmp_path, config={"model_args": f"pretrained=x,log_images={tmp_path}/kept"})
    write_samples(tmp_path, "pope", [{}, {}, {}])
    names = [[image.rpartition("/")[2] for image in answer.images] for answer in read_sample_answers(path)]
    assert names == [["0-0.png", "0-1.png"], ["1-0.png"], []]


def test_images_that_are_not_found_from_here_cause_a_warning(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(results.logger, "warning", warnings.append)
    (tmp_path / "kept").mkdir()
    path = write_results(tmp_path, config={"model_args": "pretrained=x,log_images=kept"})
    for folder, count in ((tmp_path, 0), (tmp_path.parent, 1)):
        monkeypatch.chdir(folder)
        read_sample_answers(path)
        assert len(warnings) == count
    assert "log_images=kept was not found from here" in warnings[0]


def records(folder, content=RECORD, kind=None) -> dict:
    """The records of a run whose run.json has this content; `kind`: that of its arguments."""
    write_record(folder, content)
    arguments = {"pretrained": "x", "log_images": str(folder)}
    text = ",".join(map("=".join, arguments.items()))
    path = write_results(folder, config={"model_args": arguments if kind is dict else text})
    return results.read_records(results.read_result_file(path))


def test_records_are_those_of_the_model_and_damaged_ones_are_refused_by_name(tmp_path):
    """A run from Python has a dictionary of arguments."""
    assert records(tmp_path, kind=dict) == records(tmp_path) == {"pope": RECORD}
    assert not records(tmp_path, RECORD | {"model": "/models/other"})
    for damaged in ('{"versions": {}}', "{", "[]", RECORD | {"versions": "9.9"}):
        with pytest.raises(ValueError, match="pope/run.json"):
            records(tmp_path, damaged)


def test_logged_targets_are_texts_or_lists_of_texts():
    truths = {"a": ["a"], "['a', 'b']": ["a", "b"], "[1, 2]": ["1", "2"], "[0, 1)": ["[0, 1)"], "[x]": ["[x]"]}
    assert {target: results.truths_of(target) for target in truths} == truths
