"""`omnifusion serve`: clients of OpenAI's protocol get the answers that the model gives when it is asked directly."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub.utils import httpx
from transformers.cli import serve as transformers_serve  # noqa: F401  # before a test says that it lacks its packages

from omnifusion_hf.ask import EXAMPLES, TINY, answer, complete, load, prompts
from omnifusion_hf.cli import build_parser, main


openai = pytest.importorskip("openai", reason="the server needs transformers[serving]")
FIRST, SECOND = json.loads(EXAMPLES.read_text(encoding="utf-8"))[:2]
# Offline, clients of huggingface_hub such as `transformers chat` do not reach localhost either.
NOT_OFFLINE = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def listens(host: str, port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((host, port)) == 0


def start(log: Path, port: int) -> subprocess.Popen:
    """A server of the demo model that is ready."""
    command = [sys.executable, "-m", "omnifusion_hf.cli", "serve", str(TINY), "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    until = time.monotonic() + 180
    while not listens("127.0.0.1", port):
        assert process.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(0.2)
    return process


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(port, tmp_path_factory):
    """The process and its log."""
    log = tmp_path_factory.mktemp("server") / "log"
    process = start(log, port)
    yield process, log
    process.kill()
    process.wait(timeout=30)


@pytest.fixture(scope="module")
def client(server, port):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def loaded():
    return load(TINY)


def picture(name: str) -> dict:
    data = base64.b64encode((EXAMPLES.parent / name).read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def user(*parts: dict) -> dict:
    return {"role": "user", "content": list(parts)}


def ask(client, *messages: dict, **options):
    return client.chat.completions.create(model=str(TINY), messages=messages, temperature=0, max_tokens=16, **options)


@pytest.mark.parametrize("example", [FIRST, SECOND], ids=["first", "second"])
def test_a_question_about_a_picture_is_answered_as_by_the_model_itself(client, loaded, example):
    answered = ask(client, user(picture(example["picture"]), text(example["question"]))).choices[0].message.content
    assert answered == answer(*loaded, [EXAMPLES.parent / example["picture"]], example["question"]) == example["truth"]


def as_the_processor_wants(message: dict) -> dict:
    if isinstance(message["content"], str):
        return message
    parts = [
        {"type": "image", "image": part["image_url"]["url"]} if part["type"] == "image_url" else part
        for part in message["content"]
    ]
    return message | {"content": parts}


def test_text_alone_several_pictures_and_several_turns_are_answered_as_by_the_model_itself(client, loaded):
    model, processor = loaded
    first, second = picture(FIRST["picture"]), picture(SECOND["picture"])
    asked, answered = user(first, text(FIRST["question"])), {"role": "assistant", "content": FIRST["truth"]}
    chats = [
        [user(text("Hello"))],
        [user(first, second, text(FIRST["question"]))],
        [asked, answered, user(second, text(SECOND["question"]))],
    ]
    for chat in chats:
        inputs = prompts(processor, [list(map(as_the_processor_wants, chat))])
        given = ask(client, *chat)
        assert given.choices[0].message.content == complete(model, inputs, processor, max_new_tokens=16)[0]
        assert given.usage.prompt_tokens == inputs.input_ids.shape[1]


def test_a_stream_gives_the_same_answer_piece_by_piece(client):
    question = user(picture(FIRST["picture"]), text(FIRST["question"]))
    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(client, question, stream=True)]
    assert "".join(pieces) == ask(client, question).choices[0].message.content
    assert len(pieces) > 1


@pytest.mark.parametrize(
    "message, reason",
    [
        (user({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, text("What?")), "Pillow"),
        (user({"type": "image_url", "image_url": {"url": "/no/such.png"}}, text("What?")), "No picture at"),
        ({"role": "narrator", "content": "Hello"}, "Roles are"),
        ({"content": "Hello"}, "message 0 has no role"),
        ({"role": "user", "content": None}, "message 0 .*content"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}, "message 0 .*content"),
        (user({"type": "video_url", "video_url": {"url": "/no/such.mp4"}}), "message 0: a part must be"),
        (user({"type": "image_url"}, text("What?")), "message 0: a part must be"),
        (user(text("word " * 1020)), r"takes 1\d\d\d tokens, .* room for 1024"),
    ],
    ids=[
        "no picture",
        "no file",
        "unknown role",
        "no role",
        "no content",
        "tool calls",
        "video",
        "no URL",
        "too long",
    ],
)
def test_a_request_that_cannot_be_answered_is_told_why_and_the_server_lives_on(client, message, reason):
    with pytest.raises(openai.BadRequestError, match=reason):
        ask(client, message)
    assert ask(client, user(picture(FIRST["picture"]), text(FIRST["question"]))).choices[0].message.content == "black"


@pytest.mark.parametrize("body", [{}, {"messages": []}, {"messages": "Hello"}, {"messages": ["Hello"]}, []])
def test_a_request_without_messages_is_refused_without_a_trace_in_the_log(server, port, body):
    answered = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body)
    assert answered.status_code == 400 and "message" in answered.json()["error"]["message"]
    assert "Traceback" not in server[1].read_text()


def test_clients_find_the_model_by_name_and_no_other_is_served(client):
    assert [model.id for model in client.models.list()] == [str(TINY)]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="another", messages=[user(text("Hello"))])
    assert str(TINY) in refused.value.response.text


def test_transformers_chat_talks_to_it(client, port):
    command = [sys.executable, "-m", "transformers.cli.transformers", "chat", str(TINY)]
    command += [f"http://127.0.0.1:{port}/v1", "do_sample=False", "max_new_tokens=16"]
    run = subprocess.run(
        command, input="Hello\n!exit\n", env=NOT_OFFLINE, capture_output=True, text=True, timeout=120
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    said = run.stdout.split(f"<{TINY}>:")[1]
    assert said.split()[0] == ask(client, user(text("Hello"))).choices[0].message.content


def test_it_listens_to_this_computer_alone_unless_told(client, port):
    assert build_parser().parse_args(["serve", "folder"]).host == "127.0.0.1"
    assert not listens("127.0.0.2", port)
    with socket.create_server(("0.0.0.0", free_port())) as everywhere:  # control: that address tells the difference
        assert listens("127.0.0.2", everywhere.getsockname()[1])


def test_without_its_packages_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "omnifusion_hf.serving.server", raising=False)
    monkeypatch.setattr("transformers.utils.import_utils.is_serve_available", lambda: False)
    assert main(["serve", str(TINY)]) == 2
    assert "pip install 'omnifusion_hf[serve]'" in capsys.readouterr().err


def test_a_folder_that_is_none_is_refused_in_one_line(capsys, tmp_path):
    assert main(["serve", str(tmp_path / "nothing")]) == 2
    assert f"there is no folder {tmp_path / 'nothing'}" in capsys.readouterr().err


def test_terminated_it_ends_cleanly(server, port):
    """The last test: the others use that server."""
    process, log = server
    assert listens("127.0.0.1", port)
    process.terminate()
    assert process.wait(timeout=30) in (0, -signal.SIGTERM)
    assert "Application shutdown complete" in log.read_text()
    assert not listens("127.0.0.1", port)
