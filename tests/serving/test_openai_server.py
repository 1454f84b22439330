"""`omnifusion serve`: clients of OpenAI's protocol get the answers of the model itself."""

import asyncio
import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from inspect import signature
from threading import Event
from types import SimpleNamespace
from unittest.mock import AsyncMock, Mock

import pytest
from huggingface_hub.utils import httpx
from PIL import Image, ImageFile

from omnifusion_hf.cli import main
from omnifusion_hf.commands import use
from omnifusion_hf.inference import EXAMPLES, TINY, answer_question, cut, generate_text, prompts


openai = pytest.importorskip("openai", reason="a client of the server: pip install openai")
testclient = pytest.importorskip("fastapi.testclient", reason="the server needs FastAPI: omnifusion_hf[serve]")

from omnifusion_hf.serving import openai_server as module  # noqa: E402


FIRST, SECOND = json.loads(EXAMPLES.read_text(encoding="utf-8"))[:2]
# Offline, clients of huggingface_hub such as `transformers chat` do not reach localhost either.
NOT_OFFLINE = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def listens(host: str, port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((host, port)) == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of the bundled model that is ready: its process, log and port."""
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "omnifusion_hf.cli", "serve", str(TINY), "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    until = time.monotonic() + 180
    while not listens("127.0.0.1", port):
        assert process.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(0.2)
    yield SimpleNamespace(process=process, log=log, port=port)
    process.kill()
    process.wait(timeout=30)


def test_a_taken_port_is_reported_before_the_model_is_loaded(monkeypatch):
    monkeypatch.setattr(module, "load", lambda model: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        module.serve("model", port=taken.getsockname()[1])
    for host in ("127.0.0.1", "::1"):  # control
        with pytest.raises(pytest.fail.Exception, match="loaded"):
            module.serve("model", host, port=free_port())


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)


def image(name: str) -> dict:
    data = base64.b64encode((EXAMPLES.parent / name).read_bytes()).decode()
    return image_at(f"data:image/png;base64,{data}")


def image_at(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def user(*parts: dict) -> dict:
    return {"role": "user", "content": list(parts)}


def ask(client, *messages: dict, **options):
    return client.chat.completions.create(model=str(TINY), messages=messages, temperature=0, max_tokens=16, **options)


ASKED = user(image(FIRST["image"]), text(FIRST["question"]))
DESCRIBE = [user(image("count-1.png"), text("Describe the image."))]


def test_answers_are_those_of_the_model_itself(client, demo):
    """About one image, text alone, several images and several turns."""
    model, processor = demo
    first, second = image(FIRST["image"]), image(SECOND["image"])
    asked_second = user(second, text(SECOND["question"]))
    chats = [
        ([ASKED], FIRST["truth"]),
        ([asked_second], SECOND["truth"]),
        ([user(text("Hello"))], None),
        ([user(first, second, text(FIRST["question"]))], None),
        ([ASKED, {"role": "assistant", "content": FIRST["truth"]}, asked_second], None),
    ]
    for chat, truth in chats:
        messages = module.ChatRequest(model="demo", messages=chat).messages
        inputs = prompts(processor, [[message.for_processor for message in messages]])
        given, (wanted,) = ask(client, *chat), generate_text(model, inputs, processor, max_new_tokens=16)
        assert given.choices[0].message.content == wanted and truth in (None, wanted)
        assert given.usage.prompt_tokens == inputs.input_ids.shape[1]


def test_openais_client_reads_models_streams_usage_and_errors(client):
    hello = user(text("Hello"))
    assert [model.id for model in client.models.list()] == [client.models.retrieve(str(TINY)).id] == [str(TINY)]
    *pieces, last = ask(client, ASKED, stream=True, stream_options={"include_usage": True})
    assert {(piece.model, piece.id) for piece in pieces} == {(str(TINY), last.id)} and not last.choices
    assert pieces[-1].choices[0].finish_reason == "stop"
    words, whole = [piece.choices[0].delta.content or "" for piece in pieces], ask(client, ASKED)
    assert "".join(words) == whole.choices[0].message.content and len(words) > 2
    assert last.usage == whole.usage and 0 < last.usage.total_tokens - last.usage.prompt_tokens < 9
    with pytest.raises(openai.BadRequestError) as refusal:
        ask(client, hello, n=2)
    assert (refusal.value.type, refusal.value.param) == ("invalid_request_error", "n")
    chat = client.chat.completions.create
    for request in (lambda name: chat(model=name, messages=[hello]), client.models.retrieve):
        with pytest.raises(openai.NotFoundError, match=str(TINY)) as refusal:
            request("another")
        assert (refusal.value.code, refusal.value.param) == ("model_not_found", "model")


def test_transformers_chat_talks_to_it(client, server):
    command = [sys.executable, "-m", "transformers.cli.transformers", "chat", str(TINY)]
    command += [f"http://127.0.0.1:{server.port}/v1", "do_sample=False", "max_new_tokens=16"]
    options = {"input": "Hello\n!exit\n", "env": NOT_OFFLINE, "capture_output": True, "text": True, "timeout": 120}
    run = subprocess.run(command, **options)
    assert run.returncode == 0, run.stderr
    said = run.stdout.split(f"<{TINY}>:")[1]
    assert said.split()[0] == ask(client, user(text("Hello"))).choices[0].message.content


@pytest.fixture(scope="module")
def chat_server(demo):
    """In this process, as it is for other computers: images by path are refused."""
    return module.ChatServer(*demo, "demo")


@pytest.fixture(scope="module")
def app(chat_server):
    return testclient.TestClient(module.build_app(chat_server), raise_server_exceptions=False)


def post(app, **fields):
    return app.post("/v1/chat/completions", json={"model": "demo", "messages": [ASKED]} | fields)


def answer(app, **fields) -> dict:
    return post(app, **fields).json()["choices"][0]


def refused(response, status: int) -> dict:
    """What OpenAI's clients read of a refusal."""
    error = response.json()["error"]
    assert response.status_code == status and set(error) == {"message", "type", "param", "code"}, response.text
    return error


LONG = text("word " * 1020)
EPS = base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n").decode()
INVALID = {
    "Invalid port": user(image_at("http://[::1")),
    "refused": user(image_at("http://127.0.0.1:9/x.png")),
    "base64": user(image_at("data:image/png;base64,!")),
    "PostScript, which is not run": user(image_at("data:image/png;base64," + EPS)),
    "Pillow": user(image_at("data:image/png;base64,AAAA")),
    "Roles are": {"role": "narrator", "content": "Hello"},
    r"takes 1\d\d\d tokens, .* context has 1024": user(LONG),
}


@pytest.mark.parametrize("reason", INVALID)
def test_messages_that_the_processor_refuses_are_refused_with_its_reason(app, reason):
    error = refused(post(app, messages=[INVALID[reason]]), 400)
    assert re.search(reason, error["message"]) and error["param"] == "messages"
    assert error["code"] == ("context_length_exceeded" if INVALID[reason] == user(LONG) else None)


def test_many_images_or_pixels_are_refused_before_one_is_decoded(app, monkeypatch):
    """A bilevel PNG of 100 megapixels has 20 kB."""
    file = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(file, "PNG")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded"))
    large = image_at("data:image/png;base64," + base64.b64encode(file.getvalue()).decode())
    for number, reason in ((2, "134217728 pixels together"), (65, "65 images, at most 64")):
        assert reason in refused(post(app, messages=[user(*[large] * number)]), 400)["message"]


def test_every_refusal_has_openais_form(app, monkeypatch):
    assert refused(post(app, n=2), 400)["param"] == "n"
    assert refused(app.post("/v1/responses", json={"input": [{"type": "?"}]}), 404)["code"] == "unknown_url"
    assert refused(app.get("/v1/chat/completions"), 405)["code"] == "unknown_url"
    assert refused(app.post("/load_model", json={}), 400)["param"] == "model"
    assert "text/plain" in refused(app.post("/load_model", headers={"Content-Type": "text/plain"}), 415)["message"]
    monkeypatch.setattr(module, "MAX_BODY", 100)
    assert refused(post(app), 413)["code"] == "request_too_large"
    monkeypatch.undo()
    assert post(app).status_code == 200  # control


def test_a_failure_of_the_server_is_reported_without_its_reason(app, chat_server, monkeypatch):
    monkeypatch.setattr(chat_server.model, "generate", Mock(side_effect=RuntimeError("the secret state of the model")))
    for response in (post(app), post(app, stream=True)):
        assert "its log says why" in response.text and "secret" not in response.text
    assert refused(post(app), 500)["type"] == "server_error"
    monkeypatch.undo()
    assert answer(app)["message"]["content"] == FIRST["truth"]  # the server continues


@pytest.mark.parametrize(
    "source", [str(EXAMPLES.parent / FIRST["image"]), "file:///etc/hostname", "image.png", "ftp://a/b.png"]
)
def test_images_by_path_are_only_for_local_clients(app, chat_server, source, monkeypatch):
    messages = [user(image_at(source), text(FIRST["question"]))]
    assert "data URL or an http" in refused(post(app, messages=messages), 400)["message"]
    monkeypatch.setattr(chat_server, "reads_paths", True)
    assert (post(app, messages=messages).status_code == 200) == source.startswith("/")  # control: others: no images


@pytest.fixture(scope="module")
def said(demo) -> str:
    """The model's own answer to DESCRIBE."""
    return answer_question(*demo, [EXAMPLES.parent / "count-1.png"], "Describe the image.")


def streamed(response) -> tuple[str, str]:
    """Text and reason of a stream."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    pieces = [json.loads(line)["choices"][0] for line in lines]
    return "".join(piece["delta"].get("content", "") for piece in pieces), pieces[-1]["finish_reason"]


@pytest.mark.parametrize("stop", ["e", ["no such text"], ["and", " two"], None], ids=str)
def test_stop_cuts_the_answer_streamed_or_not(app, said, stop):
    wanted = cut(said, [stop] if isinstance(stop, str) else stop or [])
    whole = answer(app, messages=DESCRIBE, stop=stop)
    assert (whole["message"]["content"], whole["finish_reason"]) == (wanted, "stop")
    assert streamed(post(app, messages=DESCRIBE, stop=stop, stream=True)) == (wanted, "stop")
    short = post(app, messages=DESCRIBE, stop=stop, max_completion_tokens=1).json()
    assert short["choices"][0]["finish_reason"] == "length" and short["usage"]["completion_tokens"] == 1


def test_a_seed_repeats_a_sampled_answer(app):
    sampled = {"messages": DESCRIBE, "temperature": 2, "max_tokens": 24}
    texts = [answer(app, **sampled, seed=seed)["message"]["content"] for seed in (1, 1, 2, 3, 4, 5)]
    assert texts[0] == texts[1] and len(set(texts)) > 1


def written(server, checks: int) -> list:
    """The pieces for a client that has disconnected after this number of checks."""
    client = SimpleNamespace(is_disconnected=AsyncMock(side_effect=[False] * checks + [True]))
    request = module.ChatRequest(model="demo", messages=DESCRIBE)

    async def pieces() -> list:
        return [each async for each in server.write(client, request, *server.prompt(request))]

    return asyncio.run(pieces())


@pytest.mark.timeout(120)
def test_an_answer_ends_when_its_client_disconnects(chat_server, monkeypatch):
    forward = chat_server.model.model.language_model.forward
    slow = Mock(side_effect=lambda *args, **options: time.sleep(0.02) or forward(*args, **options))
    monkeypatch.setattr(chat_server.model.model.language_model, "forward", slow)
    assert len(written(chat_server, checks=3)) == 3 and slow.call_count <= 6
    assert len(written(chat_server, checks=600)) > 10  # control: the next is written to its end


@pytest.mark.timeout(120)
@pytest.mark.parametrize("size, shared", [({"batch_size": 8}, [4]), ({}, [1, 1, 1, 1])], ids=["together", "alone"])
def test_requests_that_wait_are_answered_together_or_one_at_a_time_streamed_or_not(
    demo, said, monkeypatch, size, shared
):
    calls, generate, go_on = [], demo[0].generate, Event()
    counted = lambda **options: calls.append(len(options["input_ids"])) or generate(**options)  # noqa: E731
    monkeypatch.setattr(demo[0], "generate", counted)
    server = module.ChatServer(*demo, "demo", **size)
    server.batches.thread.submit(go_on.wait)
    with testclient.TestClient(module.build_app(server)) as app, ThreadPoolExecutor() as clients:
        asked = [(DESCRIBE, True), ([ASKED], False), (DESCRIBE, False), ([ASKED], True)]
        waiting = [clients.submit(post, app, messages=chat, stream=stream) for chat, stream in asked]
        while len(server.batches.waiting) < 4:
            time.sleep(0.02)
        go_on.set()
        described, black, again, streamed_black = (each.result() for each in waiting)
    assert streamed(described) == (said, "stop") and again.json()["choices"][0]["message"]["content"] == said
    assert streamed(streamed_black) == (FIRST["truth"], "stop") and said != FIRST["truth"]
    assert black.json()["choices"][0]["message"]["content"] == FIRST["truth"] and calls == shared


@pytest.fixture
def guarded(chat_server):
    """With a key, for pages of one origin, reached under the name of this computer."""
    app = module.build_app(chat_server)
    module.protect(app, "127.0.0.1", "sk-1", ["https://page.example"])
    return testclient.TestClient(app, base_url="http://127.0.0.1")


def test_only_pages_of_the_given_origins_may_ask_also_to_ask_whether_they_may(guarded):
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    for origin, allowed in (("https://page.example", "https://page.example"), ("https://evil.example", None)):
        preflight = guarded.options("/v1/chat/completions", headers={"Origin": origin} | asking)
        assert preflight.headers.get("Access-Control-Allow-Origin") == allowed
        assert preflight.is_success == bool(allowed)
        refused = guarded.get("/v1/models", headers={"Origin": origin})  # without a key: the page can read why
        assert (refused.status_code, refused.headers.get("Access-Control-Allow-Origin")) == (401, allowed)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--api-key", ""], "must be of printable ASCII"),
        (["--api-key", "a b"], "must be of printable ASCII"),
        (["--cors", "https://page.example/"], "'https://page.example/' is not an origin"),
        (["--cors", "http://localhost:5173", "page.example"], "'page.example' is not an origin"),
        (["--batch-size", "0"], "--batch-size"),
        (["--log-level", "loud"], "--log-level"),
    ],
)
def test_options_that_no_client_could_meet_are_refused_before_the_model_is_loaded(options, message, capsys):
    assert main(["serve", "/nowhere", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("key", ["of-the-variable", "given"])
@pytest.mark.parametrize("cors", [[], ["http://a", "http://b:1"]])
def test_the_command_hands_its_options_to_the_server_which_opens_no_paths_for_web_pages(cors, key, monkeypatch):
    run, protect, server = Mock(), Mock(), Mock(wraps=module.ChatServer)
    monkeypatch.setenv("OMNIFUSION_API_KEY", "of-the-variable")
    monkeypatch.setattr(module.uvicorn, "run", run)
    monkeypatch.setattr(module, "protect", protect)
    monkeypatch.setattr(module, "ChatServer", server)
    words = [*(["--api-key", key] if key == "given" else []), *(["--cors", *cors] if cors else [])]
    words += "--log-level debug --batch-size 3 --port".split() + [str(free_port())]
    assert main(["serve", str(TINY), *words]) == 0
    protect.assert_called_once_with(run.call_args.args[0], "127.0.0.1", key, cors or ())
    assert server.call_args.args[2:] == (str(TINY), not (cors or key), 3)
    assert run.call_args.kwargs["log_level"] == "debug"
    assert run.call_args.kwargs["log_config"]["loggers"]["omnifusion_hf"]["level"] == "DEBUG"


def test_by_default_it_listens_only_on_this_computer_and_only_by_its_name(server):
    """A web page can give its domain the address 127.0.0.1."""
    for host, status in ((f"127.0.0.1:{server.port}", 200), (f"evil.example:{server.port}", 403)):
        assert httpx.get(f"http://127.0.0.1:{server.port}/health", headers={"Host": host}).status_code == status
    assert signature(use.serve).parameters["host"].default == "127.0.0.1"
    assert not listens("127.0.0.2", server.port)
    with socket.create_server(("0.0.0.0", free_port())) as everywhere:  # control: that address tells the difference
        assert listens("127.0.0.2", everywhere.getsockname()[1])


def test_it_shuts_down_cleanly_on_sigterm(server):
    """The last test: the others use that server."""
    assert listens("127.0.0.1", server.port)
    server.process.terminate()
    assert server.process.wait(timeout=30) in (0, -signal.SIGTERM)
    assert "Application shutdown complete" in server.log.read_text()
    assert not listens("127.0.0.1", server.port)
