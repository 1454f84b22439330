"""`vllm serve` on a folder, and the client's code of docs/serving.md as it stands there."""

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pages
import pytest
import served


PAGE = pages.ROOT / "docs/serving.md"
DEMO = "omnifusion_hf/tiny"
READY_WITHIN = 400  # seconds; two busy cores take 120


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    """A server of the bundled model, started as a module: the `vllm` command of vLLM's CPU build does not start."""
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", DEMO, "--enforce-eager"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as file:
        environment = os.environ | served.ENVIRONMENT | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        server = subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=pages.ROOT)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


def wait_for(url: str, server: subprocess.Popen, log: Path):
    for _ in range(READY_WITHIN):
        assert server.poll() is None, log.read_text()[-6000:]
        with contextlib.suppress(OSError), urllib.request.urlopen(url):
            return
        time.sleep(1)
    raise TimeoutError(log.read_text()[-6000:])


def client_code(address: str) -> str:
    [code] = [block.code for block in pages.blocks(PAGE.read_text()) if "import OpenAI" in block.code]
    assert "http://localhost:8000" in code and DEMO in code
    return code.replace("http://localhost:8000", address)


def run(code: str) -> str:
    with contextlib.chdir(pages.ROOT), contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, str(PAGE), "exec"), {})
    return printed.getvalue().strip()


def test_the_pages_client_gets_the_right_answer(address):
    code = client_code(address)
    shown = code.rsplit("#", 1)[1].strip()
    assert run(code) == shown
    assert run(code.replace("shape-1.png", "colour-1.png")) != shown  # control: another image, another answer
