"""Every block of code in the documentation runs as written; pages.py says what is run and how a block is left out."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pages
import pytest
from PIL import Image

from omnifusion_hf.build.presets import ENCODERS


pytestmark = pages.OTHERS_DEPRECATIONS
PAGES = [pages.ROOT / "README.md", *sorted((pages.ROOT / "docs").rglob("*.md"))]
VIEWS = pages.ROOT / "docs/views"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(pages.ROOT)))
def test_code_of_the_page_runs_as_written(page, ran_page):
    ran_page(page)


def run_text(text: str, folder: Path) -> pages.Run:
    (folder / "page.md").write_text(text)
    (folder / "clone").mkdir()
    return pages.run_page(folder / "page.md", folder / "clone")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```python\n1 / 0\n```\n", ZeroDivisionError),
        ("```python\nimport urllib.request\nurllib.request.urlopen('http://localhost')\n```\n", RuntimeError),
        ("```sh\nomnifusion ask no-such-image.png What?\n```\n", AssertionError),
        ("```sh\npython -c 'exit(3)'\n```\n", AssertionError),
        ("```bash\npip install omnifusion_hf\n```\n", ValueError),
        ("<!-- not run: -->\n```python\n1\n```\n", ValueError),
        ("<!-- not run -->\n```python\n1\n```\n", ValueError),
        ("<!-- not run: it has no network -->\n\n```python\n1\n```\n", ValueError),
        ("- a list\n\n  ```python\n  1\n  ```\n", ValueError),
    ],
)
def test_control_a_broken_block_fails(text, error, tmp_path):
    with pytest.raises(error):
        run_text(text, tmp_path)


def test_blocks_without_a_reason_not_to_run_share_names_and_write_to_the_scratch_folder(tmp_path):
    text = "```python\na = 1\n```\n\n```json\n{\n```\n\n```python\nopen('out', 'w').write(str(a + 1))\n```\n"
    run = run_text(f"{text}\n<!-- not run: it has no network -->\n```python\n1 / 0\n```\n", tmp_path)
    assert [names["a"] for names in run.names] == [1, 1] and (run.folder / "out").read_text() == "2"


def test_the_page_of_views_shows_what_views_are_and_cost_by_drawings_as_its_commands_make_them(ran_page):
    run = ran_page(pages.ROOT / "docs/views.md")
    for name in ("whole.png", "regions.png", "grid.png", "both.png"):
        shown, drawn = (np.asarray(Image.open(path)).astype(int) for path in (VIEWS / name, run.folder / name))
        assert shown.shape == drawn.shape and np.abs(shown - drawn).mean() < 0.1, name
        assert np.abs(shown - np.roll(drawn, 1, axis=1)).mean() > 0.1  # control: one pixel off is not the same
        assert (VIEWS / name).stat().st_size < 300_000
    assert run.names[-1]["inputs"]["image_view_index"].tolist() == [0, 1]
    assert any("views x 36 + 2 marks" in printed for printed in run.printed)


def build_site(folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder / "site")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # --quiet hides warnings


def test_the_site_builds_without_a_warning_loads_nothing_from_elsewhere_and_links_to_what_is_there(tmp_path):
    pytest.importorskip("mkdocs", reason="pip install 'omnifusion_hf[docs]'; the site was not built")
    for path in pages.ROOT.iterdir():
        if not path.name.startswith(".") and path.name not in ("docs", "site"):
            (tmp_path / path.name).symlink_to(path)
    shutil.copytree(pages.ROOT / "docs", tmp_path / "docs")
    built = build_site(tmp_path)
    assert built.returncode == 0 and "not included in the" not in built.stderr, built.stderr
    for page in set((tmp_path / "site").rglob("*.html")) - {tmp_path / "site/404.html"}:
        html = page.read_text(encoding="utf-8")
        assert not re.search(r"""<(script|img|link)[^>]* (src|href)=["']?(https?:)?//""", html), page
        for link in re.findall(r"""<(?:a|img|script|link)[^>]* (?:src|href)=["']?([^"' >#]+)""", html):
            assert re.match(r"\w+:", link) or (page.parent / link).exists(), (page, link)
    with open(tmp_path / "docs/quickstart.md", "a") as page:  # control: a link to nothing ends the build
        page.write("\n[more](no-such-page.md)\n")
    assert "no-such-page.md" in build_site(tmp_path).stderr


@pytest.mark.parametrize("page", ["encoders.md", "building.md"])
def test_tables_of_encoders_say_what_the_presets_say(page):
    text = (pages.ROOT / "docs" / page).read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([^`]+)` \|(.*)$", text, re.M))
    for name, preset in ENCODERS.items():
        numbers = [int(number) for number in re.findall(r"(?<![\w-])-?\d+(?![\w-])", rows[name])]
        assert numbers[:4] == [preset.image_size, preset.tokens, preset.width, preset.layer], name
