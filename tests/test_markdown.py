"""markdown.py: names and settings of others show as they are, in headings, tables, lists and code."""

import html
import random
import re

import pytest

from omnifusion_hf.markdown import Markdown, code, fill, one_line, plain, table


HOSTILE = [
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "a\n\n# A heading\n\n- a list",
    "a | b\r\n| --- |",
    "[click](javascript:alert(1)) ![](http://example.org/seen.png)",
    "*a* _b_ __c__ ~~d~~ `e` ``f` $g$ \\* &lt;b&gt; &#60;",
    *("1. one", "> quoted", "---", "# ##", "<!-- hidden -->", "\u202egnp.exe\x00\ud800\u2028"),
]
LETTERS = [*"\\`*_{}[]()<>#+-.!|~$&;= \n\t1a9:/@'\"^%,?é", "<b>", "&amp;", "](x)", "1. ", "# ", "```", "---", "<!--"]


@pytest.fixture(scope="module")
def parser():
    return pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable(["table", "strikethrough"])


def tags_and_text(page: str) -> tuple[set[str], str]:
    return set(re.findall(r"<(\w+)", page)), " ".join(html.unescape(re.sub(r"<[^>]*>", "", page)).split())


def random_texts(count: int) -> list[str]:
    chance = random.Random(0)
    return ["".join(chance.choices(LETTERS, k=chance.randrange(1, 12))) for _ in range(count)]


@pytest.mark.parametrize("form, own", [("x {}", {"p"}), ("{}", {"p"}), ("## {}", {"h2"}), ("- {}", {"ul", "li", "p"})])
def test_text_shows_as_it_is_and_is_no_markup(parser, form, own):
    for text in [*HOSTILE, *random_texts(2000)]:
        tags, shown = tags_and_text(parser.render(form.format(plain(text))))
        assert tags <= own and shown == (f"x {one_line(text)}".strip() if "x" in form else one_line(text)), text


def test_a_table_has_the_cells_that_it_was_given_and_code_shows_as_it_is(parser):
    for text in [*HOSTILE, *random_texts(1000)]:
        page = parser.render(table(["name", text], [[text, 1.5], [code(text), Markdown("**bold**")]]))
        assert page.count("<td>") == 4 and page.count("<th>") == 2, text
        assert tags_and_text(page)[0] <= {"table", "thead", "tbody", "tr", "th", "td", "code", "strong"}, text
        if one_line(text):
            tags, shown = tags_and_text(parser.render("x " + code(text)))
            assert tags == {"p", "code"} and shown == f"x {one_line(text)}", text


def test_control_without_escape_they_are_markup(parser):
    tags = set().union(*(tags_and_text(parser.render("x " + text))[0] for text in HOSTILE))
    assert {"script", "img", "h1", "em", "code", "strong", "li"} <= tags


def test_a_template_escapes_all_but_markdown_and_usual_names_are_written_as_they_are():
    for name in ("pope_accuracy", "textvqa_val_ocr", "A-1.5 (b)", "Llama-3, 8B", "-0.5", "1 of 9"):
        assert plain(name) == name
    assert plain(plain("a*b")) == "a\\*b"
    assert fill("# {{ a }} {{ b }}", a="<b>", b=Markdown("**b**")) == "# \\<b> **b**"
