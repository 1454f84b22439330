"""The page of `omnifusion demo`, driven in a headless Chromium that reaches nothing but the page."""

import json
import re
import runpy
import shutil
import socket
import time
from pathlib import Path
from unittest.mock import MagicMock, Mock, call

import pytest
import yaml
from chat_page import ask, attach, box, expect_answers, expect_box, expect_cost, expect_warning, expect_writers, until
from huggingface_hub.utils import httpx
from playwright.sync_api import expect, sync_playwright
from transformers import AutoTokenizer

from omnifusion_hf import OmniFusionForConditionalGeneration
from omnifusion_hf.cli import main
from omnifusion_hf.inference import EXAMPLES, TINY


gr = pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'omnifusion_hf[demo]'")

import gradio_client  # noqa: E402  # comes with Gradio

from omnifusion_hf.serving import gradio_app as module  # noqa: E402


IMAGES = EXAMPLES.parent
TOKENIZER = AutoTokenizer.from_pretrained(TINY)
SPACE = Path(module.__file__).parent / "space"
DESCRIBE = "Describe the image.", IMAGES / "count-1.png"
CROSS = "What color is the cross?", IMAGES / "colour-1.png"
# Gradio 6.31 uses what pandas 3 is about to drop.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio.*"), pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def hosts_looked_up():
    """Names of other computers that the server looks up; every look-up fails."""
    find, names = socket.getaddrinfo, []

    def local_alone(host, *args, **kwargs):
        if host in (None, "", "localhost") or str(host).startswith("127."):
            return find(host, *args, **kwargs)
        names.append(host)
        raise socket.gaierror(f"no network: {host}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", local_alone)
        yield names


@pytest.fixture(scope="module")
def served(hosts_looked_up):
    page = module.start()
    yield page
    page.close()


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("neither chromium nor google-chrome is on the PATH")
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def strayed() -> list[str]:
    """Requests of the page to other servers, which are refused."""
    return []


@pytest.fixture
def page(served, browser, strayed):
    """The page freshly opened."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(20_000)
    refuse = lambda route: strayed.append(route.request.url) or route.abort()  # noqa: E731
    page.route(re.compile(f"^(?!{served.local_url}|data:|blob:)"), refuse)
    page.goto(served.local_url)
    yield page
    page.close()


@pytest.fixture
def chat(page):
    """The page with a question about an image and its answer."""
    ask(page, *CROSS)
    expect_answers(page, "black")
    return page


@pytest.fixture
def endless(monkeypatch, request):
    """A slow model that never ends its answer, in which nothing is seen if it is "silent"; returns a list with an item
    per token."""
    steps, generate = [], OmniFusionForConditionalGeneration.generate

    def slow(input_ids, scores):
        steps.append(1)
        time.sleep(0.1)
        scores[:, 2] = -float("inf")
        if getattr(request, "param", None) == "silent":
            scores[:, 1] = float("inf")  # <s>
        return scores

    never_ending = lambda self, **options: generate(self, **options, logits_processor=[slow])  # noqa: E731
    monkeypatch.setattr(OmniFusionForConditionalGeneration, "generate", never_ending)
    return steps


def test_the_server_is_local_and_contacts_no_other_computer(served, hosts_looked_up):
    assert served.local_url.startswith("http://127.0.0.1:") and served.share_url is None
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", served.server_port), timeout=2)
    socket.create_connection(("127.0.0.1", served.server_port), timeout=2).close()  # control
    assert not hosts_looked_up
    telling = gr.Blocks(analytics_enabled=True)  # control: Gradio left alone does call
    assert telling.analytics_enabled and not served.analytics_enabled
    until(lambda: hosts_looked_up)


def test_requests_with_another_host_name_and_files_above_the_limit_are_refused(served):
    """A web page can give its domain the address 127.0.0.1."""
    evil = {"headers": {"Host": f"evil.example:{served.server_port}"}}
    for path in ("", "config"):
        assert [httpx.get(served.local_url + path, **given).status_code for given in ({}, evil)] == [200, 403]
    for megabytes, given, status in ((1, {}, 200), (1, evil, 403), (11, {}, 413)):
        files = {"files": ("image.png", bytes(megabytes * 2**20))}
        assert httpx.post(f"{served.local_url}gradio_api/upload", files=files, **given).status_code == status


def test_the_command_passes_its_options_on(monkeypatch):
    demo = Mock()
    monkeypatch.setattr(module, "demo", demo)
    assert main(["demo"]) == main(["demo", "--model", "folder", "--host", "0.0.0.0", "--port", "80"]) == 0
    assert [each.args for each in demo.mock_calls] == [(None, "127.0.0.1", None), ("folder", "0.0.0.0", 80)]


def test_a_taken_port_is_told_in_one_line(served, capsys):
    assert main(["demo", "--port", str(served.server_port)]) == 2
    assert capsys.readouterr().err.startswith("omnifusion: error: ")


def test_the_space_starts_the_page_where_the_hub_looks_for_it_with_the_packages_requirements(monkeypatch):
    demo = Mock()
    monkeypatch.setattr(module, "demo", demo)
    for model in (None, "someone/omnifusion"):
        monkeypatch.setenv("MODEL", model) if model else monkeypatch.delenv("MODEL", raising=False)
        runpy.run_path(str(SPACE / "app.py"))
    assert demo.mock_calls == [call(model, host="0.0.0.0", port=7860) for model in (None, "someone/omnifusion")]
    header = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert header["sdk"] == "gradio" and (SPACE / header["app_file"]).exists()
    assert (SPACE / "requirements.txt").read_text(encoding="utf-8").splitlines()[-1] == "omnifusion_hf[demo]"
    assert '"demo": ["gradio>=6"]' in (SPACE.parents[2] / "setup.py").read_text(encoding="utf-8")
    assert header["sdk_version"].split(".")[0] == gr.__version__.split(".")[0] == "6"


def test_an_empty_model_name_means_the_default(monkeypatch):
    """As from a Space whose variable MODEL was cleared."""
    started = []
    monkeypatch.setattr(module, "build_page", lambda _, about, examples: started.append(about) or MagicMock())
    for model in ("", str(TINY)):
        module.start(model)
    assert started[0] == module.ABOUT_TINY and str(TINY) in started[1]


def test_an_example_is_asked_by_a_click_without_another_server_and_cleared(page, strayed):
    page.get_by_text("What word is written?").click()
    expect_answers(page, "WA")
    expect(page.locator("#drawing img")).to_be_visible()
    assert not strayed
    page.evaluate("fetch('https://example.com/font.woff2').catch(() => null)")  # control: it would be seen
    assert strayed == ["https://example.com/font.woff2"]
    page.get_by_label("Clear").click()
    expect_answers(page)
    expect(page.locator("#drawing img")).to_have_count(0)


def test_a_chat_goes_on_about_its_image_and_another_strategy_redraws_the_views(chat):
    expect_cost(chat, "1 view x 36 + 2 marks = 38 tokens, 3.7% of a context of 1024")
    drawing = chat.locator("#drawing img")
    whole = drawing.get_attribute("src")
    chat.get_by_label("grid").check()
    expect_cost(chat, "5 views x 36 + 2 marks = 182 tokens")
    assert drawing.get_attribute("src") != whole
    chat.get_by_label("whole").check()
    expect_cost(chat, "1 view")
    assert drawing.get_attribute("src") == whole  # control: files are named by their content
    ask(chat, "What shape is black?")
    expect_answers(chat, "black", "cross")


SIX = [IMAGES / f"{kind}-{n}.png" for kind in ("colour", "count", "digit") for n in (1, 2)]
REFUSED = {
    "broken.png": ("What shape is black?", ["broken.png"]),
    "2500 characters, at most 2000": ("w" * 2500, []),
    "context has 1024": ("What color is the cross?", SIX),
}


@pytest.mark.parametrize("warning", REFUSED)
def test_a_refused_question_stays_in_its_box_with_its_images_and_the_chat_continues(chat, tmp_path, warning):
    """Also a long paste, which stays text."""
    question, images = REFUSED[warning]
    (tmp_path / "broken.png").write_bytes((IMAGES / "colour-2.png").read_bytes()[:1200])
    chat.get_by_label("grid").check()
    attach(chat, *(tmp_path / image for image in images))
    chat.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat.evaluate("text => navigator.clipboard.writeText(text)", question)
    box(chat).press("Control+v")
    expect(box(chat)).to_have_value(question)
    box(chat).press("Enter")
    expect_warning(chat, warning)
    expect_box(chat, question, len(images))
    expect_answers(chat, "black")
    chat.get_by_label("whole").check()
    for _ in images:
        chat.get_by_label("Remove file").first.click()
    ask(chat, "What shape is black?")
    expect_answers(chat, "black", "cross")


def test_a_file_of_another_type_is_not_added(page, tmp_path):
    (tmp_path / "text.txt").write_text("no image")
    page.set_input_files("input[type=file]", tmp_path / "text.txt")
    expect_warning(page, "Invalid file type")
    expect_box(page, "", 0)


def test_stop_ends_the_answer_and_the_chat_continues(page, endless, monkeypatch):
    ask(page, *DESCRIBE)
    expect(page.get_by_test_id("bot")).to_contain_text("circle")
    expect_writers(1)
    page.get_by_label("Stop").click()
    expect_writers(0)
    monkeypatch.undo()
    ask(page, "How many circles are there?")
    expect(page.get_by_test_id("bot")).to_have_count(2)
    expect(page.get_by_test_id("bot").last).to_have_text("4")


@pytest.mark.parametrize("endless", ["silent"], indirect=True)
def test_a_question_stopped_before_its_answer_is_back_in_its_box(page, endless):
    ask(page, "Write the formula in LaTeX.", IMAGES / "formula-1.png")
    expect_writers(1)
    page.get_by_label("Stop").click()
    expect_box(page, "Write the formula in LaTeX.", 1)
    expect_answers(page)
    expect_writers(0)


def test_a_chat_cleared_while_it_is_answered_stays_empty(page, endless):
    ask(page, *DESCRIBE)
    expect(page.get_by_test_id("bot")).to_contain_text("circle")
    page.get_by_label("Clear").click()
    expect_writers(0)
    expect(box(page)).to_be_enabled()
    expect_answers(page)
    expect_cost(page, module.NOTHING_SEEN)


WITHOUT_ANSWER = {
    "The model failed": Mock(side_effect=RuntimeError("out of memory")),
    "answer is empty": lambda self, input_ids, **options: input_ids,
}


@pytest.mark.parametrize("warning", WITHOUT_ANSWER)
def test_without_an_answer_a_warning_is_shown_and_the_question_is_kept(page, monkeypatch, warning):
    monkeypatch.setattr(OmniFusionForConditionalGeneration, "generate", WITHOUT_ANSWER[warning])
    ask(page, *CROSS)
    expect_warning(page, warning)
    expect_box(page, "What color is the cross?", 1)
    expect_answers(page)
    monkeypatch.undo()
    expect(box(page)).to_be_enabled()
    box(page).press("Enter")
    expect_answers(page, "black")


def test_one_chat_is_answered_at_a_time_and_a_closed_page_leaves_no_thread(page, browser, served, endless):
    ask(page, *DESCRIBE)
    expect_writers(1)
    other = browser.new_page()
    other.goto(served.local_url)
    other.get_by_text("What word is written?").click()
    expect(other.get_by_text("queue: ")).to_be_visible()
    expect(other.locator("#drawing img")).to_have_count(0)
    page.close()
    expect(other.locator("#drawing img")).to_be_visible()
    other.close()
    expect_writers(0)
    assert len(endless) < 100  # control: left alone it would write 512 tokens


@pytest.fixture
def given(monkeypatch) -> list[dict]:
    """The arguments of each call of `generate`."""
    given, generate = [], OmniFusionForConditionalGeneration.generate
    spy = lambda self, **options: given.append(options) or generate(self, **options)  # noqa: E731
    monkeypatch.setattr(OmniFusionForConditionalGeneration, "generate", spy)
    return given


def test_an_answer_is_asked_again_and_a_question_edited_and_taken_back(chat, given):
    ask(chat, "What shape is black?")
    expect_answers(chat, "black", "cross")
    chat.get_by_role("button", name="Retry").click()
    until(lambda: len(given) == 2)
    assert given[0]["input_ids"].equal(given[1]["input_ids"])
    expect(box(chat)).to_be_enabled()
    expect_answers(chat, "black", "cross")
    chat.get_by_label("Edit").first.click()
    chat.locator(".message textarea").fill("What color is the star?")
    chat.get_by_label("Submit").first.click()
    expect_answers(chat, "cyan")  # with the image of the question; the later turn is gone
    chat.get_by_role("button", name="Undo").click()
    expect_box(chat, "What color is the star?", 1)
    expect_answers(chat)


def test_a_region_is_drawn_with_two_clicks_and_is_gone_with_the_next_image(page):
    attach(page, IMAGES / "colour-1.png")
    page.get_by_text("Regions of the last image").click()
    image, regions = page.locator("#regions img"), page.get_by_label("Regions, one a line")
    expect(image).to_be_visible()
    scale = image.bounding_box()["width"] / 192
    corner = r"(19|20|21), (9|10|11), (149|150|151), (139|140|141)"
    for x, y, written in ((150, 140, r"\d+, \d+ *"), (20, 10, corner)):
        image.click(position={"x": x * scale, "y": y * scale})
        expect(regions).to_have_value(re.compile(f"^{written}$"))  # a click during an event is none
    expect_cost(page, "2 views")
    box(page).fill("What color is the cross?")
    box(page).press("Enter")
    expect_answers(page, "black")
    expect_cost(page, "2 views")
    attach(page, IMAGES / "shape-1.png")
    expect(regions).to_have_value("")


def test_instructions_temperature_and_length_reach_the_model(page, given):
    question, image = DESCRIBE
    attach(page, image)
    page.get_by_text("Regions of the last image").click()
    expect(page.locator("#regions img")).to_be_visible()  # no event of the page is under way
    page.get_by_text("Answers", exact=True).click()
    settings = {
        "number input for Temperature": "0.5",
        "number input for Most tokens": "3",
        "Instructions before the chat": "Be brief.",
    }
    for label, value in settings.items():
        page.get_by_label(label).fill(value)
    box(page).fill(question)
    for label, value in settings.items():
        expect(page.get_by_label(label)).to_have_value(value)
    box(page).press("Enter")
    expect(page.get_by_test_id("bot")).to_have_count(1)
    expect(box(page)).to_be_enabled()
    (options,) = given
    assert options["do_sample"] and (options["temperature"], options["max_new_tokens"]) == (0.5, 3)
    assert "Be brief." in TOKENIZER.decode(options["input_ids"][0])


def test_a_chat_is_downloaded_as_messages_of_the_chat_template(chat):
    with chat.expect_download() as download:
        chat.get_by_text("Download the chat").click()
    saved = json.loads(Path(download.value.path()).read_text())
    question = [{"type": "image", "image": "colour-1.png"}, {"type": "text", "text": "What color is the cross?"}]
    answer = [{"type": "text", "text": "black"}]
    assert [(turn["role"], turn["content"]) for turn in saved] == [("user", question), ("assistant", answer)]


def test_gradios_client_asks_with_an_image_and_a_question(served):
    client = gradio_client.Client(served.local_url, verbose=False)
    question = {"text": "What shape is black?", "files": [gradio_client.handle_file(IMAGES / "shape-1.png")]}
    assert client.predict(question, api_name="/answer") == "star"
    described = client.predict(question | {"text": "Describe the image."}, max_new_tokens=3, api_name="/answer")
    assert len(TOKENIZER(described).input_ids) <= 3
    with pytest.raises(gradio_client.exceptions.AppError, match="The question is missing"):
        client.predict({"text": "", "files": []}, api_name="/answer")
    with pytest.raises(gradio_client.exceptions.AppError):  # a file of the server that the client did not upload
        client.predict({"text": "What?", "files": [{"path": str(SPACE / "app.py")}]}, api_name="/answer")
    assert [*client.view_api(return_format="dict")["named_endpoints"]] == ["/answer"]
    client.close()


def test_own_examples_are_read_before_the_model_and_shown(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(module, "load", lambda *args, **options: pytest.fail("loaded"))
    assert main(["demo", "--examples", str(tmp_path)]) == 2
    assert f"{tmp_path} has no examples" in capsys.readouterr().err
    with pytest.raises(pytest.fail.Exception, match="loaded"):  # control
        main(["demo", "--examples", str(IMAGES)])
