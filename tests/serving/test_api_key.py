"""serving/api_key.py: requests without the key get 401 in OpenAI's form."""

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route


testclient = pytest.importorskip("fastapi.testclient", reason="the server needs FastAPI: omnifusion_hf[serve]")

from omnifusion_hf.serving.api_key import RequireKey  # noqa: E402


@pytest.fixture
def client():
    paths = ("/v1/models", "/health", "/load_model")
    routes = [Route(path, lambda http: PlainTextResponse("hello")) for path in paths]
    return testclient.TestClient(RequireKey(Starlette(routes=routes), key="sk-1"))


RIGHT = ["Bearer sk-1", "bearer sk-1"]
WRONG = ["Bearer sk-2", "Bearer sk-", "Bearer ", "sk-1", "Basic sk-1", "Bearer sk-é", None]


@pytest.mark.parametrize("given", RIGHT + WRONG)
def test_only_requests_with_the_key_reach_the_server(client, given):
    answered = client.get("/v1/models", headers={"Authorization": given.encode()} if given else {})
    assert answered.status_code == (200 if given in RIGHT else 401)
    if given in WRONG:
        error = answered.json()["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
        assert "sk-1" not in answered.text and answered.headers["WWW-Authenticate"] == "Bearer"


def test_what_never_runs_the_model_needs_no_key(client):
    assert [client.get(path).text for path in ("/health", "/load_model")] == ["hello", "hello"]
