"""Every block of code in the documentation runs as written; pages.py says what is run and how a block is left out."""

import numpy as np
import pages
import pytest
from PIL import Image


pytestmark = pages.OTHERS_DEPRECATIONS
PAGES = [pages.ROOT / "README.md", *sorted((pages.ROOT / "docs").rglob("*.md"))]
VIEWS = pages.ROOT / "docs/views"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_of_the_page_runs_as_written(page, ran_page):
    ran_page(page)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```python\n1 / 0\n```\n", ZeroDivisionError),
        ("```sh\nomnifusion ask no-such-picture.png What?\n```\n", AssertionError),
        ("```sh\npython -c 'exit(3)'\n```\n", AssertionError),
        ("```bash\npip install omnifusion_hf\n```\n", ValueError),
        ("<!-- not run: -->\n```python\n1\n```\n", ValueError),
        ("<!-- not run -->\n```python\n1\n```\n", ValueError),
        ("<!-- not run: it has no network -->\n\n```python\n1\n```\n", ValueError),
    ],
)
def test_control_a_broken_block_fails(text, error, tmp_path):
    page, folder = tmp_path / "page.md", tmp_path / "clone"
    folder.mkdir()
    page.write_text(text)
    with pytest.raises(error):
        pages.run_page(page, folder)
    page.write_text("<!-- not run: it has no network -->\n```python\n1 / 0\n```\n")
    (tmp_path / "again").mkdir()
    assert pages.run_page(page, tmp_path / "again").names == []


def test_blocks_of_a_page_share_names_and_write_to_the_scratch_folder(tmp_path):
    page, folder = tmp_path / "page.md", tmp_path / "clone"
    folder.mkdir()
    page.write_text("```python\na = 1\n```\n\n```json\n{\n```\n\n```python\nopen('out', 'w').write(str(a + 1))\n```\n")
    run = pages.run_page(page, folder)
    assert [names["a"] for names in run.names] == [1, 1] and (folder / "out").read_text() == "2"


@pytest.mark.parametrize("name", ["whole.png", "regions.png", "grid.png", "both.png"])
def test_a_drawing_on_the_page_of_views_is_what_its_command_makes(name, ran_page):
    run = ran_page(pages.ROOT / "docs/views.md")
    shown, drawn = (np.asarray(Image.open(path)).astype(int) for path in (VIEWS / name, run.folder / name))
    assert shown.shape == drawn.shape and np.abs(shown - drawn).mean() < 0.1
    assert np.abs(shown - np.roll(drawn, 1, axis=1)).mean() > 0.1  # control: one pixel off is not the same
    assert (VIEWS / name).stat().st_size < 300_000


def test_the_page_of_views_shows_what_views_are_and_cost(ran_page):
    run = ran_page(pages.ROOT / "docs/views.md")
    assert run.names[-1]["inputs"]["image_view_index"].tolist() == [0, 1]
    assert any("views x 36 + 2 marks" in printed for printed in run.printed)
