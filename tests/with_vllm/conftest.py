"""vLLM pins packages of its own: these tests run in an environment of their own (`make test-vllm`), no others do."""

from importlib.util import find_spec


if find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]
