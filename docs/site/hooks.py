"""What mkdocs is told of this repository: pages from outside docs/, and links that hold in the repository and in the site.

A page is written for a reader of the repository: its links are relative to its own place there. Files outside docs/ that a page
links to (results, pictures, sources) come into the site under their own path; a link to nothing is an error of the build.
"""

import logging
import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
OUTSIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")
RECIPES = "recipes.md"  # a section of CONTRIBUTING.md as a page of its own
_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
# What GitHub shows as a list and mkdocs as text.
_GLUED = re.compile(r"^(?![ \t|#<>-]|\*|\d+\.|$).*\n((?:[-*]|\d+\.) .*)", re.MULTILINE)
_NESTED = re.compile(r"^ {2,3}((?:[-*]|\d+\.) .*)", re.MULTILINE)
_LOG = logging.getLogger("mkdocs.hooks.pages")
_CODE = re.compile(r"^```.*?^```|^(?: {4}.*\n)+|`[^`]+`", re.MULTILINE | re.DOTALL)


def recipes(contributing: str) -> str:
    """The section `## Recipes`, its headings a level higher."""
    section = re.search(r"^## Recipes\n.*?(?=^## |\Z)", contributing, re.MULTILINE | re.DOTALL)
    if section is None:
        raise ValueError("CONTRIBUTING.md has no section `## Recipes`, which is a page of the site")
    return re.sub(r"^#(?=#+ )", "", section[0], flags=re.MULTILINE)


def in_repository(src_uri: str) -> str:
    """Where the text of a page stands in the repository."""
    if src_uri == RECIPES:
        return "CONTRIBUTING.md"
    return src_uri if src_uri in OUTSIDE else f"docs/{src_uri}"


def in_site(path: str) -> str:
    """Where the site has a file of the repository."""
    return path.removeprefix("docs/")


def linked(markdown: str, path: str) -> list[str]:
    """The files of the repository that a page at `path` links to."""
    text = _CODE.sub("", markdown)
    targets = (target for _, target, _ in _LINK.findall(text) if ":" not in target)
    return [posixpath.normpath(posixpath.join(posixpath.dirname(path), target)) for target in targets]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path in OUTSIDE:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    files.append(File.generated(config, RECIPES, content=recipes((ROOT / "CONTRIBUTING.md").read_text())))
    for page in list(files.documentation_pages()):
        for path in linked(page.content_string, in_repository(page.src_uri)):
            uri = in_site(path)
            if path == uri and files.get_file_from_path(uri) is None and (ROOT / path).is_file():
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = page.file.src_uri
    path = in_repository(here)
    prose = _CODE.sub("", markdown)
    for pattern, what in (
        (_GLUED, "a list needs a blank line before it"),
        (_NESTED, "a list in a list needs four spaces"),
    ):
        for line in pattern.findall(prose):
            _LOG.warning("%s: %s: %s", path, what, line)

    def relative(link: re.Match[str]) -> str:
        before, target, after = link.groups()
        if ":" in target:
            return link[0]
        to = in_site(posixpath.normpath(posixpath.join(posixpath.dirname(path), target)))
        return before + os.path.relpath(to, posixpath.dirname(here) or ".") + after

    pieces, last = [], 0
    for code in _CODE.finditer(markdown):
        pieces += [_LINK.sub(relative, markdown[last : code.start()]), code[0]]
        last = code.end()
    return "".join([*pieces, _LINK.sub(relative, markdown[last:])])
