"""The pages: both languages show the same, links lead somewhere, paths exist."""

import re
from pathlib import Path

import pytest

from megatron_chimed.data.formats.registry import FORMATS
from tests.readme import commands

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
PAIRS = [(DOCS / name, DOCS / "zh" / name) for name in PAGES]
PAIRS += [
    (path, path.with_name("README_zh.md"))
    for path in (ROOT / "README.md", *sorted(ROOT.glob("examples/*/README.md")))
]
ALL = sorted(
    [
        *ROOT.glob("*.md"),
        *DOCS.rglob("*.md"),
        *ROOT.glob("csrc/*.md"),
        *ROOT.glob("examples/*/*.md"),
    ]
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(r"`([\w.-]+(?:/[\w.-]+)*(?:/|\.(?:py|yaml|sh|md|cpp|cu|h)))`")
PROSE_WIDTH = 100


def read(path):
    return path.read_text(encoding="utf-8")


def prose(path):
    """A page without its fenced blocks."""
    return FENCE.sub("", read(path))


def blocks(path):
    """What is typed or run in the fenced blocks: explanations in either language left out.

    An explanation is a comment, or stands two blanks behind what it explains.
    """
    found = []
    for language, text in FENCE.findall(read(path)):
        lines = [re.split(r"\s*# |(?<=\S) {2,}", line.rstrip())[0] for line in text.splitlines()]
        found.append((language, lines if language != "json" else text))
    return found


def slugs(path):
    """The anchors that GitHub gives a page's headings."""
    kept = (re.sub(r"[^\w\- ]", "", title.lower()) for _, title in HEADING.findall(prose(path)))
    return {title.strip().replace(" ", "-") for title in kept}


def test_each_page_exists_in_both_languages():
    assert PAGES == sorted(path.name for path in DOCS.glob("zh/*.md"))


@pytest.mark.parametrize(
    ("english", "chinese"), PAIRS, ids=lambda path: path.parent.name + path.stem
)
def test_both_languages_show_the_same(english, chinese):
    assert blocks(english) == blocks(chinese)
    levels = [
        [len(marks) for marks, _ in HEADING.findall(prose(path))] for path in (english, chinese)
    ]
    assert levels[0] == levels[1]
    rows = [[line.count("|") for line in prose(path).splitlines() if line.startswith("|")]
            for path in (english, chinese)]  # fmt: skip
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("english", "chinese"), PAIRS, ids=lambda path: path.parent.name + path.stem
)
def test_a_page_links_the_other_language_at_its_top(english, chinese):
    there, back = read(english).splitlines()[2], read(chinese).splitlines()[2]
    assert there.startswith("[中文](") and back.startswith("[English](")
    assert (english.parent / LINK.findall(there)[0]).resolve() == chinese
    assert (chinese.parent / LINK.findall(back)[0]).resolve() == english


def test_both_readmes_give_the_same_commands():
    assert commands("README.md") == commands("README_zh.md")


@pytest.mark.parametrize("page", ALL, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    for target in LINK.findall(prose(page)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or anchor in slugs(file), target


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "README_zh.md",
                                  DOCS / "glossary.md", DOCS / "zh/glossary.md"],
                         ids=lambda path: path.parent.name + path.stem)  # fmt: skip
def test_paths_of_this_repository_exist(page):
    bases = [ROOT, ROOT / "megatron_chimed", ROOT / "tests", *(ROOT / "tests").iterdir()]
    found = PATH.findall(prose(page))
    assert found
    missing = [path for path in found if not any((base / path).exists() for base in bases)]
    assert not missing


@pytest.mark.parametrize("name", ["README.md", "README_zh.md"])
def test_the_tree_of_the_readme_shows_every_package(name):
    (tree,) = (text for _, text in FENCE.findall(read(ROOT / name)) if text.startswith("megatron_"))
    shown = set(re.findall(r"[\w.]+(?:/|\.py)", tree))
    package = ROOT / "megatron_chimed"
    there = {path.name + "/" for path in package.iterdir() if (path / "__init__.py").exists()}
    there |= {path.name for path in package.glob("*.py")} - {"__init__.py"}
    assert there <= shown


@pytest.mark.parametrize("page", [path for path in ALL if "zh" not in str(path.relative_to(ROOT))],
                         ids=lambda path: str(path.relative_to(ROOT)))  # fmt: skip
def test_english_prose_is_wrapped(page):
    lines = [line for line in prose(page).splitlines() if not line.startswith(("|", "["))]
    long = [line for line in lines if len(line) > PROSE_WIDTH and "](http" not in line]
    assert not long


@pytest.mark.parametrize("words", [("README.md", "formats"), ("README_zh.md", "种格式")])
def test_the_readme_knows_how_many_formats_there_are(words):
    name, unit = words
    (count,) = re.findall(rf"\[(\d+) ?{unit}\]", (ROOT / name).read_text(encoding="utf-8"))
    assert int(count) == len(FORMATS)


def test_the_format_that_the_page_shows_reads_its_sample():
    (snippet,) = (
        text for language, text in FENCE.findall(read(DOCS / "formats.md")) if language == "python"
    )
    names = {}
    exec(snippet, names)
    shown = names["CONSULTATION"]
    (conversation,) = shown.examples(shown.sample, names["ReadOptions"]())
    assert shown.fits(shown.sample)
    assert [(turn.question, turn.answer) for turn in conversation.turns] == [
        tuple(shown.sample.values())
    ]
