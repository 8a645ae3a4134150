"""The pages in docs/: every source has a section, and every command line that is shown can be typed so."""

import inspect
import re
import shlex
from pathlib import Path

import pytest
import typer

from damcli.cli import app
from damcli.commands.prepare.reading import SOURCES, _reader

DOCS = Path(__file__).resolve().parent.parent / "docs"
COMMAND = re.compile(r"(?<![\w./-])damcli ([a-z].*)")


def shown(page: str) -> list[str]:
    """The command lines of a page, in blocks of code (indented, or between fences) and in the text."""
    text = re.sub(r" *\\\n *", " ", page)
    inline = re.findall(r"`([^`\n]+)`", text)
    blocks = "\n".join(
        re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL) + re.findall(r"^ {4}.*", text, re.MULTILINE)
    )
    found = [match[1] for code in [*blocks.splitlines(), *inline] if (match := COMMAND.search(code))]
    # What is said of a command stands behind it, after a wide gap or #; it may also write into a pipe.
    return [re.split(r" {2,}| [|#] ", line)[0] for line in found]


def parsed(line: str) -> tuple[str, dict[str, object]]:
    """The command of a line and its parameters, read as when it is run."""
    words, command = shlex.split(line), typer.main.get_command(app)
    name = "damcli"
    while hasattr(command, "commands"):
        word = words.pop(0)
        assert word in command.commands, f"there is no command {name} {word}"
        name, command = f"{name} {word}", command.commands[word]
    return name, command.make_context(name, words).params


LINES = {line: page.name for page in sorted(DOCS.glob("*.md")) for line in shown(page.read_text(encoding="utf-8"))}


def test_commands_are_found_and_wrong_ones_are_noticed() -> None:
    assert shown("a `damcli info doctor`\n\n    x damcli train a \\\n      --loss ce   # so\n") == [
        "train a --loss ce",
        "info doctor",
    ]
    assert set(LINES.values()) == {page.name for page in DOCS.glob("*.md") if "damcli " in page.read_text()}
    assert parsed("prepare nih a --size 64")[1]["size"] == 64
    for wrong in ("prepare nih a --sise 64", "prepare nih a --size big", "prepare nih a b", "prepre nih"):
        with pytest.raises((typer.TyperException, AssertionError)):
            parsed(wrong)


@pytest.mark.parametrize("line", LINES)
def test_a_command_line_that_is_shown_parses(line: str) -> None:
    name, values = parsed(line)
    if name != "damcli prepare" or values["source"] not in SOURCES:
        return
    # Options that belong to some sources belong to this one.
    readers = {source: set(inspect.signature(_reader(source)).parameters) for source in SOURCES}
    special = set().union(*readers.values()) - {"path", "seed"}
    assert {option for option in special if values[option]} <= readers[str(values["source"])]


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_has_a_section_with_a_command_and_a_row(source: str) -> None:
    page = (DOCS / "sources.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^### {source}\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL)
    assert any(parsed(line)[1].get("source") == source for line in shown(section))
    assert f"\n| [{source}](#{source}) |" in page


def test_links_lead_somewhere() -> None:
    for page in DOCS.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        anchors = {
            re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in re.findall(r"^#+ (.+)", text, re.M)
        }
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if link.startswith("#"):
                assert link[1:] in anchors, f"{page.name}: {link}"
            elif "://" not in link:
                assert (DOCS / link.partition("#")[0]).exists(), f"{page.name}: {link}"
