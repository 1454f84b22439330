# Copyright 2026 The omnifusion_hf authors. Licensed under the Apache License, Version 2.0.
"""Hook of MkDocs: links that work in the repository work on the site. Its first page is the README, and files outside
docs/ that a page links to become part of the site."""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File, Files


ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")


def place_on_site(path: str) -> str:
    """Where a file of the repository lies among the sources of the site."""
    return {"README.md": "index.md"}.get(path, path.removeprefix("docs/"))


def place_in_repository(place: str) -> str:
    """The other way round."""
    if place == "index.md":
        return "README.md"
    return f"docs/{place}" if (ROOT / "docs" / place).exists() else place


def linked(page: str) -> list[str]:
    """Files of the repository that a page links to; both by their path from its root."""
    links = LINK.findall((ROOT / page).read_text(encoding="utf-8"))
    return [posixpath.normpath(posixpath.join(posixpath.dirname(page), link)) for link in links]


def on_files(files: Files, config) -> Files:
    """Adds the README and what pages link to, and what those link to."""
    pages = ["README.md", *(place_in_repository(file.src_uri) for file in files.documentation_pages())]
    while pages:
        for path in ("README.md", *linked(pages.pop())):
            place = place_on_site(path)
            if (ROOT / path).is_file() and files.get_file_from_path(place) is None:
                files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
                if path.endswith(".md"):
                    pages.append(path)
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Turns links between files of the repository into links between their places on the site."""
    source = place_in_repository(page.file.src_uri)

    def move(match: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        start = posixpath.dirname(place_on_site(source)) or "."
        return f"]({posixpath.relpath(place_on_site(target), start)}"

    return LINK.sub(move, markdown)


def on_page_content(html: str, page, config, files: Files) -> str:
    """Docstrings name classes as transformers' do, [`Name`]."""
    return re.sub(r"\[(<code>[^<]*</code>)\]", r"\1", html)
