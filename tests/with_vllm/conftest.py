"""vLLM pins other package versions, so only these tests run in its own environment (`make test-vllm`)."""

from importlib.util import find_spec


if find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]
