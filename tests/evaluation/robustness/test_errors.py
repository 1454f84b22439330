"""robustness/errors.py: kinds of answers, the contents of the page, and that hostile text stays text."""

import base64
from html.parser import HTMLParser
from io import BytesIO

import pytest
import tiny
from PIL import Image
from pixels import stored_turned

from omnifusion_hf.evaluation.answers import Answer
from omnifusion_hf.evaluation.robustness import errors


HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 6 }}'


def answer(name, truth="red", said="blue", score=0.0, task="t", images=(), **more) -> Answer:
    return Answer(str(name), task, f"Question {name}?", list(images), [truth], said, score, **more)


class Tags(HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.text = [], ""
        self.handle_starttag = lambda tag, attributes: self.tags.append((tag, dict(attributes)))
        self.feed(page)

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def page(tmp_path):
    def write(answers, image_folder=tmp_path) -> str:
        errors.write_errors(tmp_path / "errors.html", answers, image_folder)
        return (tmp_path / "errors.html").read_text(encoding="utf-8")

    return write


KINDS = {
    "yes or no": ("Yes", "no.", "No"),
    "number": ("12", "-3.5", "1,000", "40%", "12/05/1998", "24/7", "1 000", "$5", "5 €", "3:15", "3:15 p.m."),
    "option letter": ("B", "(c)", "d)"),
    "formula": ("x^{2}", "\\frac{1}{2}", "x^2+1", "E = mc"),
    "single word": ("nothing", "12a", "K", "and/or", "TCP/IP", "www.a.com/b", "C++", "zebra", "Zürich."),
    "text": ("10 km/h", "top left", "A red\nstar", ""),
}


@pytest.mark.parametrize("kind, truth", [(kind, truth) for kind, truths in KINDS.items() for truth in truths])
def test_kind_of_answer(kind, truth):
    assert errors.kind_of(answer(0, truth)) == kind


def test_an_unknown_right_answer_is_shown_as_not_logged_and_without_clean_answers_there_is_no_page(page):
    unknown = Answer("0", "vizwiz_vqa_val", "What is it?", [], [], "tea", 0.3)
    assert ">not logged<" in page([unknown]) and "not logged" not in page([answer(0, "tea", "milk", 0.0)])
    with pytest.raises(ValueError, match="unchanged images"):
        page([answer(0, perturbation="blur", strength=1.0)])


def test_answers_are_counted_by_task_and_kind_and_only_the_wrong_about_unchanged_images_are_shown_worst_first(page):
    answers = [answer(n, "red", "red" if n else "blue", float(n > 0), task="colours") for n in range(4)]
    answers += [answer(9, "7", "8", 0.0, task="counts"), answer(10, "7", "8.", 0.6, task="counts")]
    answers += [answer(0, "red", "sky", 0.0, task="colours", perturbation="blur", strength=1.0)]
    text = " ".join(Tags(page(answers)).text.split())
    assert "3 of 6 questions were not answered right" in text
    assert "colours single word 4 1 0.750" in text and "counts number 2 2 0.300" in text
    assert "Question 0?" in text and "Question 1?" not in text
    assert "Answers about changed images, left out: 1." in text and "sky" not in text
    assert text.index("Question 9?") < text.index("Question 10?")


def test_hostile_text_stays_text(page, tmp_path):
    path = tmp_path / "a'\"<b>.png"
    tiny.image().save(path)
    html = page([Answer(HOSTILE, HOSTILE, HOSTILE, [str(path), HOSTILE], [HOSTILE], HOSTILE, 0.0)])
    parsed = Tags(html)
    assert not [tag for tag, _ in parsed.tags if tag in ("script", "iframe", "object", "link", "b")]
    assert not [key for _, attributes in parsed.tags for key in attributes if key.startswith("on")]
    assert parsed.text.count(HOSTILE) >= 4  # control: it is shown, as it is
    sources = [attributes.get("src", "") for tag, attributes in parsed.tags if tag == "img"]
    assert len(sources) == 1 and sources[0].startswith("data:image/jpeg;base64,")
    assert "default-src 'none'" in html


def test_images_are_embedded_as_thumbnails_and_missing_ones_named(page, tmp_path):
    tiny.image(1, (900, 1200)).save(tmp_path / "large.png")
    html = page([answer(0, images=[str(tmp_path / "large.png"), str(tmp_path / "absent.png")])])
    assert html.count("<img ") == 1 and "absent.png cannot be shown" in html and len(html) < 40_000


def test_no_image_outside_the_folder_is_shown_and_without_one_the_page_says_why(page, tmp_path, monkeypatch):
    """Files of answers are untrusted, and the page may be published."""
    folder, others = tmp_path / "images", [tmp_path / "secret.png", tmp_path / "images-of-others.png"]
    (folder / "a").mkdir(parents=True)
    monkeypatch.chdir(folder)
    for path in (*others, folder / "a/own.png"):
        tiny.image().save(path)
    names = [*map(str, others), f"{folder}/../secret.png", f"{folder}/a/../../secret.png", "../secret.png", "\0", ""]
    html = page([answer(number, images=[name]) for number, name in enumerate(names)], folder)
    assert "<img" not in html and html.count("cannot be shown") == len(names)
    own = [answer(number, images=[name]) for number, name in enumerate([f"{folder}/a/own.png", "a/own.png"])]
    shown, hidden = page(own, folder), page(own, None)
    assert shown.count("<img") == 2 and "--image-folder" not in shown  # control
    assert "<img" not in hidden and "--image-folder" in hidden


def test_thumbnails_are_upright(tmp_path):
    for orientation in (1, 6):
        (tmp_path / "image").write_bytes(stored_turned(tiny.image(0, (40, 90)), orientation))  # (H, W)
        data = errors.thumbnail(str(tmp_path / "image"), tmp_path).partition(",")[2]
        assert Image.open(BytesIO(base64.b64decode(data))).size == (90, 40)


def test_long_lists_are_cut_with_a_note(page):
    html = page([answer(n) for n in range(errors.MOST_SHOWN + 1)])
    assert html.count("<article>") == errors.MOST_SHOWN and f"The worst {errors.MOST_SHOWN} are shown" in html
    assert "are shown" not in page([answer(n) for n in range(errors.MOST_SHOWN)])
