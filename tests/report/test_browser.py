"""The page of an evaluation in a browser: alone, readable in both themes and at any width, usable without a mouse."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from damcli.report import page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# No traffic of the browser's own; and it has no sandbox for root, who runs tests in containers.
ARGUMENTS = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip
FINDINGS = ("Edema", "Enlarged Cardiomediastinum", "Fracture", "Pleural Effusion")
# Every text that is seen: its contrast with what it stands on, and itself. Colours as WCAG 2.2 defines them.
CONTRASTS = """() => {
  const numbers = colour => (colour.match(/[\\d.]+/g) || []).map(Number);
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = colour => colour.slice(0, 3).map(v => linear(v / 255))
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const ground = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = numbers(getComputedStyle(e).backgroundColor);
      if (colour.length && colour[3] !== 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || ['title', 'desc'].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const [one, other] = [light(numbers(element.closest('svg') ? style.fill : style.color)), light(ground(element))];
    found.push([(Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05), node.data.trim()]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless browser of the machine."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser is installed: looked for {', '.join(BROWSERS)}")
    root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=[*ARGUMENTS, *root])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(example: Callable[..., Any], hostile: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every section, all of it unfolded where it may be."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    page.write(path, *example((*FINDINGS, hostile), used=True))
    return path


@contextmanager
def shown(browser: Any, report: Path, width: int = 1200, **options: Any) -> Iterator[Any]:
    """The page in a window; what goes wrong in it, and what it asks for beyond itself, fails the test."""
    context = browser.new_context(viewport={"width": width, "height": 900}, reduced_motion="reduce", **options)
    window = context.new_page()
    wrong: list[str] = []
    window.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
    window.on("pageerror", lambda error: wrong.append(str(error)))
    window.on("requestfailed", lambda request: wrong.append(request.url))
    window.on("request", lambda request: request.url in (report.as_uri(),) or request.url.startswith("data:")
              or wrong.append(request.url))  # fmt: skip
    window.goto(report.as_uri())
    yield window
    assert wrong == []
    context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_is_asked_for_and_every_text_has_contrast(browser: Any, report: Path, theme: str, width: int) -> None:
    with shown(browser, report, width, color_scheme=theme) as window:
        ground = window.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (theme == "light")
        window.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        contrasts = window.evaluate(CONTRASTS)
        assert len(contrasts) > 500
        assert [text for contrast, text in contrasts if contrast < 4.5] == []


@pytest.mark.parametrize("width", [320, 400, 768, 1200, 1920])
def test_only_tables_scroll_sideways(browser: Any, report: Path, width: int) -> None:
    with shown(browser, report, width) as window:
        window.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert window.evaluate("document.documentElement.scrollWidth") <= width
        wide = """[...document.querySelectorAll('body *')].filter(each => !each.closest('.scroll')
            && each.getBoundingClientRect().right > innerWidth + 1).map(each => each.outerHTML.slice(0, 80))"""
        assert window.evaluate(wide) == []
        if width == 400:
            assert window.evaluate("[...document.querySelectorAll('.scroll')].some(e => e.scrollWidth > e.clientWidth)")


def test_the_wide_tables_fit_a_wide_window(browser: Any, report: Path) -> None:
    with shown(browser, report) as window:
        assert window.evaluate(
            "[...document.querySelectorAll('.scroll')].every(e => e.scrollWidth <= e.clientWidth + 1)"
        )


def test_every_picture_is_whole_and_named(browser: Any, report: Path) -> None:
    with shown(browser, report) as window:
        assert window.evaluate("[...document.images].every(each => each.complete && each.naturalWidth > 0 && each.alt)")
        pictures = window.get_by_role("img")
        # Drawings that a reader may see: those in folded parts are not in the tree.
        assert pictures.count() > 40
        assert window.get_by_role("img", name="ROC curve of Edema").count() == 1
        names = [picture.evaluate("e => e.alt || e.querySelector('title').textContent") for picture in pictures.all()]
        assert all(names)


def test_the_keyboard_reaches_every_link_table_and_folded_part(browser: Any, report: Path) -> None:
    with shown(browser, report) as window:
        wanted = window.evaluate("""[...document.querySelectorAll('a, summary, .scroll')]
            .filter(e => e.checkVisibility()).map((e, k) => { e.dataset.number = k; return k; })""")
        reached = []
        for number in wanted:
            window.keyboard.press("Tab")
            focused = "document.activeElement"
            reached.append(int(window.evaluate(f"{focused}.dataset.number ?? -1")))
            outline = window.evaluate(f"getComputedStyle({focused}).outlineStyle")
            assert outline == "solid", number
        assert reached == wanted
        window.locator("summary").first.focus()
        window.keyboard.press("Enter")
        assert window.evaluate("document.querySelector('details').open")


def test_the_skip_link_is_seen_when_reached_and_leads_to_the_figures(browser: Any, report: Path) -> None:
    with shown(browser, report) as window:
        window.keyboard.press("Tab")
        box = window.locator(".skip").bounding_box()
        assert box is not None
        assert box["x"] >= 0
        window.keyboard.press("Enter")
        assert window.evaluate("document.querySelector('#figures').getBoundingClientRect().top") < 100


def test_without_scripts_the_page_is_the_same(browser: Any, report: Path) -> None:
    texts = []
    for enabled in (True, False):
        with shown(browser, report, java_script_enabled=enabled) as window:
            texts.append(window.locator("body").inner_text())
    assert texts[0] == texts[1]
    assert '<script>alert("x")</script>' in texts[0]


def test_in_print_it_is_light_and_nothing_is_cut_off(browser: Any, report: Path) -> None:
    with shown(browser, report, 690, color_scheme="dark") as window:
        window.emulate_media(media="print")
        assert window.evaluate("getComputedStyle(document.body).color") == "rgb(27, 31, 36)"
        assert not window.locator("nav").is_visible()
        cut = """[...document.querySelectorAll('table')].filter(each => each.checkVisibility()
            && each.getBoundingClientRect().right > innerWidth + 1).map(each => each.textContent.slice(0, 60))"""
        assert window.evaluate(cut) == []
        assert window.pdf(prefer_css_page_size=True).startswith(b"%PDF")


def test_drawings_do_not_overlap_their_own_texts(browser: Any, report: Path) -> None:
    with shown(browser, report) as window:
        window.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        overlaps = window.evaluate("""[...document.querySelectorAll('svg')].flatMap(svg => {
            const across = (a, b) => a.left < b.right - 1 && b.left < a.right - 1;
            const meet = (a, b) => across(a, b) && a.top < b.bottom - 1 && b.top < a.bottom - 1;
            const texts = [...svg.querySelectorAll('text')].map(e => [e.getBoundingClientRect(), e.textContent]);
            return texts.flatMap(([a, one], k) =>
                texts.slice(k + 1).filter(([b]) => meet(a, b)).map(([, two]) => [one, two]));
        })""")
        assert overlaps == []
