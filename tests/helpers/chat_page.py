"""What one does and sees on the page of `omnifusion demo`, which playwright shows in a browser."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest


pytest.importorskip("playwright.sync_api", reason="playwright drives the browser: pip install playwright")
from playwright.sync_api import Locator, Page, expect  # noqa: E402


expect.set_options(timeout=20_000)


def box(page: Page) -> Locator:
    """Where one writes a question."""
    return page.get_by_test_id("textbox").first


def attach(page: Page, *images: Path):
    expect(box(page)).to_be_enabled()  # while an answer is written it is not, and keys pressed then are lost
    page.set_input_files("input[type=file]", images)
    expect(page.get_by_label("File thumbnail")).to_have_count(len(images))


def expect_box(page: Page, question: str, num_images: int):
    """A question that is not sent yet, with so many images."""
    expect(box(page)).to_have_value(question)
    expect(page.get_by_label("File thumbnail")).to_have_count(num_images)


def ask(page: Page, question: str, *images: Path):
    attach(page, *images)
    box(page).fill(question)
    box(page).press("Enter")


def expect_answers(page: Page, *texts: str):
    expect(page.get_by_test_id("bot")).to_have_text(list(texts))


def expect_cost(page: Page, text: str):
    expect(page.locator("#cost")).to_contain_text(text)


def expect_warning(page: Page, text: str):
    toast = page.get_by_test_id("toast-body")
    expect(toast).to_contain_text(text)
    assert "Traceback" not in page.inner_text("body")
    page.get_by_label("Close").click()
    expect(toast).to_have_count(0)


def until(holds: Callable[[], bool]):
    deadline = time.monotonic() + 15
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def expect_writers(num: int):
    """So many answers are being written."""
    until(lambda: num == sum(thread.name.startswith("answer") for thread in threading.enumerate()))
