"""Model cards and uploads, against a stand-in for the Hub's HTTP API."""

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import copytree

import conversations
import peft
import pytest
import tiny
from huggingface_hub import HfApi, ModelCard, ModelCardData
from lmms_results import write_results
from tiny import image

from omnifusion_hf import OmniFusionForConditionalGeneration, hub
from omnifusion_hf.cli import main
from omnifusion_hf.evaluation.answers import Answer
from omnifusion_hf.evaluation.results import read_scores
from omnifusion_hf.inference import generate_text, load, prompts


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's


@pytest.fixture
def folder(model_folder, tmp_path) -> Path:
    """A saved model with its card."""
    copy = copytree(model_folder, tmp_path / "model")
    hub.render_card(copy, hub.CardFacts()).save(copy / "README.md")
    return copy


def code_of(card: ModelCard) -> str:
    return card.text.split("```python\n")[1].split("\n```")[0]


def test_a_card_counts_the_parameters_of_every_part_and_says_which_layers_are_read(model):
    rows = {row["part"]: row["parameters"] for row in hub.describe_parts(model.config)}
    adapter = sum(p.numel() for p in model.model.multi_modal_projector.parameters())
    assert rows["adapter"] == f"{adapter:,}"
    total = sum(int(count.replace(",", "")) for count in rows.values())
    assert total == sum(p.numel() for p in model.parameters())
    mix = tiny.config(("clip", "dinov2"), projector_type="summation")
    for config, read in ((mix, "all hidden states of 3 layers"), (tiny.config(), "hidden state -2 of 3 layers")):
        assert all(read in row["what"] for row in hub.describe_parts(config) if row["part"].startswith("encoder"))


def test_a_card_shows_training_and_scores_where_there_are_some(folder, tmp_path):
    (folder / "training_summary.json").write_text(json.dumps({"steps": 7, "trained_parameters": {"lm_head": 1234}}))
    scores = {"pope": {"alias": "pope", "pope_f1_score,none": 0.781_83, "pope_f1_score_stderr,none": 0.01}}
    results = write_results(tmp_path, results=scores)
    facts = hub.CardFacts(base_model=["a/b"])
    card = hub.render_card(folder, facts, repo_id="me/omni", scores=read_scores(results))
    assert "| steps | 7 |" in card.text and "| trained parameters | lm_head 1,234 |" in card.text
    assert "| pope | pope_f1_score | 0.7818 |" in card.text
    assert [result.metric_value for result in card.data.eval_results] == [0.7818]
    assert card.data.base_model == ["a/b"] and card.data.pipeline_tag == "image-text-to-text"
    assert card.data.library_name == "transformers" and card.data.model_name == "omni"
    without = (folder / "README.md").read_text(encoding="utf-8")
    assert "## Use" in without and "## Training" not in without and "## Evaluation" not in without


@pytest.fixture
def card(folder) -> Path:
    """A card that somebody wrote."""
    (folder / "README.md").write_text(WRITTEN, encoding="utf-8")
    return folder / "README.md"


def write_scores(folder: Path, **scores: float) -> str:
    results = {task: {f"{task}_score,none": value} for task, value in scores.items()}
    return str(write_results(folder, results=results))


WRITTEN = """---
license: mit
base_model: [a/vision, b/llm]
datasets: [c/data]
language: [en, ru]
my_own_key: kept
tags: [mine]
---
# What I wrote

It loads with AutoModel.from_pretrained("a/vision") and needs **care**.

## Limits

Mine.
"""


def test_a_card_that_is_there_keeps_what_was_written(folder, card):
    before = ModelCard.load(card)
    assert main(["card", str(folder)]) == 0
    assert main(["card", str(folder), "--license", "apache-2.0", "--dataset", "d/more", "e/more"]) == 0
    after, changed = ModelCard.load(card), {"license": "apache-2.0", "datasets": ["d/more", "e/more"]}
    assert after.text == before.text and after.data.my_own_key == "kept"
    assert after.data.to_dict() == before.data.to_dict() | changed


def test_scores_are_added_to_a_card_and_new_ones_replace_the_old_of_their_task(folder, card, tmp_path):
    second = {"pope": 0.75}
    for scores in ({"pope": 0.5, "gqa": 0.25}, second, second):
        assert main(["card", str(folder), "--results", write_scores(tmp_path, **scores)]) == 0
    card = ModelCard.load(card)
    measured = {result.dataset_name: result.metric_value for result in card.data.eval_results}
    assert measured == {"pope": 0.75, "gqa": 0.25}
    assert card.data.model_name == "model" and card.data.language == ["en", "ru"]
    assert card.text.count("## Evaluation") == 1 and card.text.count("| pope | pope_score | 0.75 |") == 1
    scores = card.text.partition("## Evaluation")
    assert scores[0].rstrip() + "\n\n## Limits" + scores[2].partition("## Limits")[2] == WRITTEN.split("---\n")[2]
    assert "0.5 |" not in card.text


def test_scores_of_answers_are_put_into_a_card(folder, tmp_path):
    answers = [Answer(str(i), "colour", "What?", [], ["red"], "red", score) for i, score in enumerate((1.0, 0.0, 1.0))]
    (tmp_path / "answers.jsonl").write_text("".join(map(Answer.as_line, answers)))
    assert main(["card", str(folder), "--results", str(tmp_path / "answers.jsonl")]) == 0
    assert "| colour | exact_match | 0.6667 |" in ModelCard.load(folder / "README.md").text


def test_the_card_of_a_conversion_keeps_its_facts_when_scores_are_added(folder, tmp_path):
    facts = hub.CardFacts(base_model=["a/b"], language=["ru"], description="Converted.", notes=["A note."])
    hub.render_card(folder, facts).save(folder / "README.md")
    results = write_scores(tmp_path, pope=0.5)
    assert main(["card", str(folder), "--results", results]) == 0
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == ["a/b"] and card.data.language == ["ru"]
    assert "Converted." in card.text and "- A note." in card.text and "| pope | pope_score | 0.5 |" in card.text
    fresh = hub.render_card(folder, facts, scores=read_scores(Path(results)))  # control: as a new card has it
    assert card.text.strip() == fresh.text.strip()


def test_only_the_usage_code_of_this_model_gets_the_name_on_the_hub_and_a_persons_section_of_scores_stays_alone(
    folder, card, tmp_path
):
    own = 'model = AutoModelForImageTextToText.from_pretrained("/here", trust_remote_code=True)\n'
    card.write_text(f"{WRITTEN}\n### Evaluation by hand\n\nGood.\n\n{own}", encoding="utf-8")
    text = ModelCard.load(card).text
    assert main(["card", str(folder), "--repo-id", "me/omni", "--results", write_scores(tmp_path, pope=0.5)]) == 0
    after = ModelCard.load(card)
    assert after.text == text.replace("/here", "me/omni") and 'AutoModel.from_pretrained("a/vision")' in after.text
    assert len(after.data.eval_results) == 1


HOSTILE = "<script>alert(1)</script> | `a`\n## A heading"


def test_hostile_names_are_escaped_in_a_card(folder, tmp_path):
    (folder / "training_summary.json").write_text(json.dumps({HOSTILE: HOSTILE, "trained_parameters": {HOSTILE: 1}}))
    scores = read_scores(Path(write_scores(tmp_path, **{HOSTILE: 0.5})))
    facts = hub.CardFacts(description=HOSTILE, notes=[HOSTILE], base_model=[HOSTILE])
    card = hub.render_card(folder, facts, repo_id=f'me/{HOSTILE}"); import os', scores=scores)
    heading, prose = card.text.partition("```python")[0], card.text.replace("\\<script", "")
    assert heading.count("\n# ") == 1 and "## A heading" not in heading.splitlines()
    assert "<script" not in prose.replace(code_of(card), "")
    compile(code_of(card), "README.md", "exec")
    assert ModelCard(str(card)).data.base_model == [HOSTILE]  # control: the metadata are YAML and hold it whole
    assert "\\<script>alert(1)\\</script> \\| \\`a\\` ## A heading" in card.text


def test_the_usage_code_of_a_card_prints_the_models_answer(folder, model, processor, tmp_path, monkeypatch, capsys):
    card = hub.render_card(folder, hub.CardFacts(), repo_id=str(folder))
    monkeypatch.chdir(tmp_path)
    image(0).save("image.png")
    exec(compile(code_of(card), "README.md", "exec"), {})
    [question] = re.findall(r'"text": "(.*?)"', code_of(card))
    inputs = prompts(processor, [[tiny.user(image(0), question)]])
    assert capsys.readouterr().out.strip() == generate_text(model, inputs, processor, 64)[0]


WRONG = [("weights.bin", "weights.bin"), ("modeling_omnifusion.py", "lacks the code"), ("README.md", "no model card")]


@pytest.mark.parametrize("file, said", WRONG)
def test_check_refuses_stray_pickles_and_a_folder_without_its_code_or_card_but_knows_what_training_leaves(
    file, said, folder
):
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "optimizer.pt").touch()
    (folder / "training_args.bin").touch()
    hub.check_folder(folder)
    (folder / file).unlink() if (folder / file).exists() else (folder / file).touch()
    with pytest.raises(ValueError, match=said):
        hub.check_folder(folder)


PULL_REQUEST = {"isPullRequest": True, "changes": {"base": "refs/heads/main"}, "filesWithConflicts": [], "title": "t"}
PULL_REQUEST |= {"num": 1, "createdAt": "2026-01-01T00:00:00.000Z", "status": "draft", "events": []}
PULL_REQUEST |= {"repo": {"name": "others/omni", "type": "model"}}


class StandIn(BaseHTTPRequestHandler):
    """As much of the Hub's API as creating a repository, validating a card and one commit need."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen[self.path] = body
        if self.path == "/api/validate-yaml":
            errors = [{"message": "license is not known"}] * (b"no-such-licence" in body)
            return self.reply({"errors": errors, "warnings": []}, 400 if errors else 200)
        if self.path == "/api/repos/create":
            return self.reply({"url": f"{self.server.url}/me/omni", "id": "me/omni", "name": "me/omni"})
        if "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            return self.reply({"files": [file | {"shouldIgnore": False} for file in files]})
        url = f"{self.server.url}/me/omni/commit/1"
        if self.path.endswith("/discussions"):
            return self.reply({"num": 1})
        return self.reply({"commitUrl": url, "commitOid": "1", "success": True, "hookOutput": ""})

    def do_GET(self):
        if self.path == "/api/whoami-v2":
            return self.reply(self.server.user)
        if "/absent" in self.path:
            return self.reply({"error": "Repository not found"}, 404, **{"X-Error-Code": "RepoNotFound"})
        if "/tree/" in self.path:
            return self.reply([{"type": "file", "path": path, "size": 1, "oid": "0"} for path in self.server.files])
        if "/discussions/1" in self.path:
            return self.reply(PULL_REQUEST)
        self.reply({"id": "me/omni", "sha": "0", "siblings": [], "tags": []})

    def reply(self, content: dict | list, status: int = 200, **headers: str):
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """The stand-in, listening, with huggingface_hub turned to it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.user = {"name": "me", "orgs": [{"name": "lab", "roleInOrg": "write"}, {"name": "x", "roleInOrg": "read"}]}
    server.files, server.seen, server.url = [], {}, f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.repocard.constants.ENDPOINT", server.url, raising=False)
    monkeypatch.setattr("omnifusion_hf.hub.HfApi", lambda: HfApi(endpoint=server.url, token="hf_token"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def committed(server) -> dict[str, bytes]:
    """The files of the commit to `me/omni`."""
    commit = [json.loads(line) for line in server.seen["/api/models/me/omni/commit/main"].splitlines()]
    return {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in commit if line["key"] == "file"
    }


def test_push_uploads_every_file_after_the_checks(folder, server, capsys):
    kept = {path.name for path in folder.iterdir()}
    (folder / "training_args.bin").write_bytes(b"")
    assert main(["push", str(folder), "me/omni", "--private"]) == 0
    created = json.loads(server.seen["/api/repos/create"])
    assert created["name"] == "omni" and created["visibility"] == "private"
    files = committed(server)
    assert files.keys() == kept
    card = files["README.md"].decode()
    assert 'from_pretrained("me/omni"' in card and str(folder) not in card.split("## Use")[1]


def test_earlier_weights_of_the_repository_are_removed_and_a_name_alone_is_the_users(folder, server):
    stale = ["adapter_config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    server.files = [*stale, "model.safetensors", "notes.txt"]
    assert main(["push", str(folder), "omni"]) == 0
    commit = [json.loads(line) for line in server.seen["/api/models/me/omni/commit/main"].splitlines()]
    assert [line["value"]["path"] for line in commit if line["key"] == "deletedFile"] == stale
    assert b'from_pretrained("me/omni"' in committed(server)["README.md"]


def commit_of(server) -> tuple[str, dict]:
    """The path of the one commit, and its header."""
    (path,) = [path for path in server.seen if "/commit/" in path]
    return path, json.loads(server.seen[path].splitlines()[0])["value"]


def test_push_to_a_branch_with_a_message(folder, server):
    assert main(["push", str(folder), "lab/omni", "--revision", "v2", "--commit-message", "More data"]) == 0
    path, header = commit_of(server)
    assert path == "/api/models/lab/omni/commit/v2" and header["summary"] == "More data"
    assert "/api/models/lab/omni/branch/v2" in server.seen


def test_a_pull_request_needs_no_right_to_write_and_makes_no_repository(folder, server, capsys):
    assert main(["push", str(folder), "others/omni", "--create-pr"]) == 0
    assert commit_of(server)[0] == "/api/models/others/omni/commit/refs%2Fpr%2F1"
    assert "/api/repos/create" not in server.seen
    assert capsys.readouterr().out.splitlines()[-1] == f"{server.url}/others/omni/discussions/1"


def test_a_missing_folder_is_refused_before_the_hub_is_asked(refused):
    assert "there is no folder nowhere" in refused("push", "nowhere", "me/omni")


READER = {"auth": {"accessToken": {"role": "read"}}}


@pytest.mark.parametrize(
    "words, user, said",
    [
        ("others/omni", {}, "me may write to me, lab"),
        ("x/omni", {}, "me may write to me, lab"),
        ("me/omni", READER, "the token may only read; use `hf auth login`"),
        ("others/absent --create-pr", {}, "there is no others/absent on the Hub"),
        ("others/omni --create-pr --revision v2", {}, "leave out --revision v2"),
    ],
)
def test_rights_are_checked_before_the_folder_is_loaded(folder, server, monkeypatch, refused, words, user, said):
    monkeypatch.setattr(hub, "check_folder", lambda folder: pytest.fail("the folder was loaded"))
    server.user |= user
    assert said in refused("push", folder, *words.split()) and not server.seen


@pytest.mark.parametrize("offline", [False, True])
def test_a_push_without_login_or_network_is_one_line(folder, monkeypatch, refused, offline):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("omnifusion_hf.hub.HfApi", lambda: HfApi(endpoint="http://127.0.0.1:9", token="hf_token"))
    if not offline:
        monkeypatch.setattr("omnifusion_hf.hub.HfApi", HfApi)
        monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: None)
    said = refused("push", folder, "me/omni")
    assert said.startswith("cannot push to me/omni: ") and "`hf auth login`" in said


def test_a_training_run_that_will_push_checks_the_rights_first(server, monkeypatch, tmp_path, refused):
    monkeypatch.setattr("omnifusion_hf.training.train.HfApi", lambda token: HfApi(server.url, token="hf_token"))
    monkeypatch.setattr("omnifusion_hf.training.train.load_processor", lambda name: pytest.fail("a model was loaded"))
    recipe = conversations.write_recipe(tmp_path, tmp_path / "model")
    assert "me may write to me, lab" in refused("train", recipe, "push_to_hub=true", "hub_model_id=others/omni")


REFUSED = {  # words after the folder, a file of the folder and its new content -> what is said
    ('push me/omni";import_os', "README.md", WRITTEN): "import_os",
    ("push me/omni", "README.md", "---\nlicense: no-such-licence\n---\n# x\n"): "license is not known",
    ("card --results other.json", "other.json", "{}"): "lmms-eval",
    ("card", "adapter_config.json", "{}"): "names no base model",
    ("card", "adapter_config.json", "[]"): "names no base model",
    ("push me/omni", "adapter_config.json", ""): "adapter_config.json: ",
    ("push me/omni", "README.md", "---\nlicense: a: b\n---\n# x\n"): "README.md: ",
}


@pytest.mark.parametrize("given", REFUSED)
def test_an_invalid_name_card_result_or_base_is_refused_and_nothing_is_published(
    given, folder, server, refused, monkeypatch
):
    (command, *words), file, content = given[0].split(), *given[1:]
    monkeypatch.chdir(folder)
    (folder / file).write_text(content)
    before = (folder / "README.md").read_bytes()
    if (command, file) == ("card", "adapter_config.json"):  # a card that is there is kept
        before = ModelCard.from_template(ModelCardData()).text.encode()
        (folder / "README.md").write_bytes(before)
    assert REFUSED[given] in refused(command, folder, *words)
    assert (folder / "README.md").read_bytes() == before and not any("commit" in path for path in server.seen)


@pytest.fixture
def lora(folder, processor, tmp_path, monkeypatch) -> Path:
    """A LoRA run's folder, with the card that PEFT leaves; its base is `lab/base`, from the current folder."""
    monkeypatch.chdir(tmp_path)
    base = copytree(folder, tmp_path / "lab" / "base")
    model = OmniFusionForConditionalGeneration.from_pretrained(base)
    settings = peft.LoraConfig(target_modules=r".*language_model.*q_proj", init_lora_weights=False)
    peft.get_peft_model(model, settings).save_pretrained(tmp_path / "lora")
    processor.save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


def test_lora_weights_are_pushed_alone_and_name_their_base_on_the_hub(lora, server):
    kept = (lora / hub.LORA).read_bytes()
    form = (lora / "README.md").read_text()
    (lora / "README.md").write_text(form.replace("[More Information Needed]", "Mine", 1))
    assert hub.read_card(lora) is not None  # control: a form that somebody began to fill in is a card
    (lora / "README.md").write_text(form)
    assert main(["card", str(lora), "--base-model", "me/base"]) == 0
    assert main(["push", str(lora), "me/omni"]) == 0
    files = committed(server)
    assert "config.json" not in files and "adapter_model.safetensors" in files
    assert json.loads(files[hub.LORA])["base_model_name_or_path"] == "me/base"
    assert (lora / hub.LORA).read_bytes() == kept and b"me/base" not in kept
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model == "me/base" and card.data.base_model_relation == "adapter"
    assert 'from_pretrained("me/omni"' in card.text and "only what training changed" in card.text


@pytest.mark.parametrize(
    "base, said", [([], "push it, then name it"), (["me/absent"], "no me/absent on the Hub"), (["a/b", "c/d"], "LoRA")]
)
def test_lora_weights_whose_base_others_cannot_load_are_not_pushed(lora, server, refused, base, said):
    facts = hub.CardFacts(base_model=base)
    (lora / "README.md").write_text(f"---\n{ModelCardData(base_model=facts.base_model)}\n---\nMine.")
    assert said in refused("push", lora, "me/omni") and not any("commit" in path for path in server.seen)


def test_the_folder_that_lora_weights_are_pushed_as_loads_and_answers_as_the_run(lora, processor, tmp_path):
    inputs = prompts(processor, [[tiny.user(image(0), "What?")]])
    answers = []
    with hub.as_published(lora, "lab/base") as published:
        for folder in (lora, published, tmp_path / "lab/base"):
            answers.append(load(str(folder))[0](**inputs).logits)
    assert answers[0].equal(answers[1]) and not answers[0].equal(answers[2])  # control: the base's
