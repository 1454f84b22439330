"""What the training tests share: a base model."""

from pathlib import Path

import conversations
import pytest


def pytest_itemcollected(item):
    """PEFT 0.21 reads an attribute that transformers renamed."""
    item.add_marker(pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"))


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """The folder of a tiny model. Not to be changed."""
    return conversations.write_model(tmp_path_factory.mktemp("base"))
