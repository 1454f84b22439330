"""serving/hosts.py: a local server answers only requests that name this computer."""

import asyncio
from unittest.mock import AsyncMock

import pytest

from omnifusion_hf.serving.hosts import LoopbackHosts, is_loopback, names_this_computer


OURS = {name + port for name in ("127.0.0.1", "localhost", "LOCALHOST", "[::1]") for port in ("", ":8000")}
OTHERS = {f"{name}evil.example{port}" for name in ("", "127.0.0.1.", "localhost.") for port in ("", ":8000")}
OTHERS |= {"127.0.0.1:80@evil.example", "192.168.1.7:8000", "0.0.0.0:8000", "[::1", ""}


def test_hosts_and_addresses_of_this_computer_are_recognised():
    assert {host for host in OURS | OTHERS if names_this_computer(host)} == OURS
    addresses = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::")
    assert [is_loopback(address) for address in addresses] == [True] * 3 + [False] * 2


ANSWERED = {"own": ([b"localhost:7"], 200), "another": ([b"evil.example"], 403)}
ANSWERED |= {"none": ([], 403), "two": ([b"localhost", b"evil.example"], 403)}


@pytest.mark.parametrize("hosts, status", ANSWERED.values(), ids=ANSWERED)
def test_a_request_to_another_name_does_not_reach_the_server(hosts, status):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    send = AsyncMock()
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", host) for host in hosts]}
    asyncio.run(LoopbackHosts(app)(scope, None, send))
    assert send.await_args_list[0].args[0]["status"] == status
