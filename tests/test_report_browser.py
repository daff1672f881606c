"""The report in a real browser: loads nothing, works by keyboard, readable in all widths and schemes."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import Workspace
from debian import install

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.full
WIDTHS = {"desktop": (1280, 800), "phone": (375, 812)}
SCHEMES = ("light", "dark")
# levels of the visible headings, without the dialog's
LEVELS = (
    "[...document.querySelectorAll('h1,h2,h3,h4,h5,h6')]"
    ".filter(h => h.checkVisibility()).map(h => Number(h.tagName[1]))"
)


def chromium() -> str | None:
    """Path of Chromium, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@dataclass
class Opened:
    """A page with its requests and error messages since it was opened."""

    page: Page
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium."""
    from playwright.sync_api import sync_playwright

    if chromium() is None and (reason := install("chromium")):
        pytest.skip(f"no Chromium: {reason}")
    with sync_playwright() as playwright:
        # Chromium's sandbox does not work as root; it opens only our page
        started = playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(finished: Workspace) -> Path:
    """The finished study's report."""
    return finished.results / "report.html"


@pytest.fixture(
    params=[(width, scheme) for width in WIDTHS for scheme in SCHEMES], ids=lambda params: "-".join(params)
)
def opened(browser: Browser, report: Path, request: pytest.FixtureRequest) -> Iterator[Opened]:
    """The report, opened from the disk, at each width and in each colour scheme."""
    name, scheme = request.param
    width, height = WIDTHS[name]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    page = context.new_page()
    found = Opened(page)
    page.on("request", lambda asked: found.asked.append(asked.url))
    page.on(
        "console",
        lambda message: (
            found.complaints.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.goto(report.as_uri())
    yield found
    shots = report.parent / "screenshots"
    shots.mkdir(exist_ok=True)
    page.keyboard.press("Escape")
    page.screenshot(path=shots / f"{name}_{scheme}.png", full_page=True)
    context.close()


def focused(page: Page, expression: str) -> object:
    """Evaluate a JavaScript property of the focused element."""
    return page.evaluate(f"document.activeElement.{expression}")


def tab_to(page: Page, selector: str) -> None:
    """Press Tab until an element has the focus, like a reader without a mouse."""
    for _ in range(400):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"{selector} cannot be reached by Tab")


def test_the_page_asks_for_itself_alone_and_complains_of_nothing(opened: Opened, report: Path) -> None:
    opened.page.locator(".thumb").first.click()
    opened.page.keyboard.press("ArrowRight")
    opened.page.keyboard.press("Escape")
    assert [url for url in opened.asked if not url.startswith("data:")] == [report.as_uri()]
    assert opened.complaints == []
    opened.page.wait_for_function(
        "[...document.images].every(image => image.complete && (image.naturalWidth > 0 || "
        "image.closest('dialog')))"
    )


def test_nothing_is_wider_than_the_screen(opened: Opened) -> None:
    wide = (
        "[...document.body.querySelectorAll('*')]"
        ".filter(e => e.checkVisibility() && !e.closest('.scroll, pre, .hidden, .skip')"
        " && e.getBoundingClientRect().right > innerWidth + 1)"
        ".map(e => e.outerHTML.slice(0, 80))"
    )
    assert opened.page.evaluate(wide) == []
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_answer_is_on_the_first_screen(opened: Opened) -> None:
    place = opened.page.locator("header .answer").bounding_box()
    assert place is not None and opened.page.evaluate("scrollY") == 0
    assert place["y"] >= 0 and place["y"] + place["height"] <= opened.page.evaluate("innerHeight")


def test_two_rows_are_put_side_by_side_by_keyboard(opened: Opened) -> None:
    page, strips = opened.page, opened.page.locator("#pair .strip")
    boxes = [strip.bounding_box() for strip in strips.all()]
    left, right = boxes
    assert left is not None and right is not None
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"], (
        "side by side, on a phone, too"
    )

    def names() -> list[str]:
        return page.locator("#pair h4").all_inner_texts()

    before, classes = names(), page.locator("#pair .thumb img").first.get_attribute("alt")
    tab_to(page, "#pair-second")
    page.keyboard.press("Home")
    assert names() == [before[0], "Real training images"]
    page.keyboard.press("Tab")
    page.keyboard.press("End")
    assert page.locator("#pair .thumb img").first.get_attribute("alt") != classes, "another class"
    tab_to(page, "#pair .thumb")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    title = dialog.get_by_role("heading").inner_text()
    assert title == page.locator("#pair .thumb img").first.get_attribute("alt")
    page.keyboard.press("ArrowLeft")
    last = page.locator("#pair .thumb img").last.get_attribute("alt")
    assert dialog.get_by_role("heading").inner_text() == last, "the images of both rows, in a ring"


def test_every_table_and_figure_leads_to_its_file(opened: Opened, report: Path) -> None:
    links = opened.page.locator(".source a")
    names = [link.get_attribute("href") or "" for link in links.all()]
    assert {"tables/table1.csv", "tables/contrasts.csv", "figures/figure4.png"} <= set(names)
    assert all((report.parent / name).is_file() for name in names)


def test_headings_are_in_order_and_images_have_texts(opened: Opened) -> None:
    levels = opened.page.evaluate(LEVELS)
    assert levels.count(1) == 1 and levels[0] == 1 and len(levels) > 15
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert (
        opened.page.evaluate(
            "[...document.querySelectorAll('main img')].filter(image => !image.alt.trim()).length"
        )
        == 0
    )


def test_axe_finds_no_fault(opened: Opened) -> None:
    from axe_playwright_python.sync_playwright import Axe

    def faults() -> list[str]:
        found = Axe().run(opened.page).response["violations"]
        return [f"{fault['id']}: {fault['nodes'][0]['html'][:200]}" for fault in found]

    opened.page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert faults() == []
    opened.page.locator(".thumb").first.click()
    assert faults() == []


def column(page: Page, header: str) -> int:
    """Index, from 0, of the accuracy table's column of this header."""
    headers = page.evaluate(
        "[...document.querySelectorAll('#accuracy table')[0].querySelectorAll('thead th button')]"
        ".map(button => button.textContent)"
    )
    return int(headers.index(header))


def test_a_table_is_sorted_by_keyboard(opened: Opened) -> None:
    page = opened.page
    at, paper = column(page, "Top-1 (%)"), column(page, "Paper (%)")
    tab_to(page, f"#accuracy thead th:nth-child({at + 1}) button")
    assert focused(page, "textContent") == "Top-1 (%)"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", (
        "the focus is seen"
    )
    rows = "[...document.querySelector('#accuracy table').tBodies[0].rows]"
    accuracies = f"{rows}.map(row => Number(row.cells[{at}].dataset.sort))"
    before = page.evaluate(accuracies)
    page.keyboard.press("Enter")
    assert page.evaluate(accuracies) == sorted(before, reverse=True)
    assert focused(page, "closest('th').ariaSort") == "descending"
    page.keyboard.press("Space")
    assert page.evaluate(accuracies) == sorted(before)
    assert focused(page, "closest('th').ariaSort") == "ascending"
    # whole rows are sorted; those without a number stay last
    page.locator("#accuracy table").first.get_by_role("button", name="Paper (%)").click()
    last = page.evaluate(f"{rows}.map(row => row.cells[{paper}].textContent)")
    assert "-" in last and last[0] != "-"
    assert last == sorted(last, key=lambda text: text == "-")
    assert (
        page.evaluate(
            "document.querySelectorAll('#accuracy table')[0].querySelectorAll('[aria-sort]').length"
        )
        == 1
    )
    assert sorted(page.evaluate(accuracies)) == sorted(before)


def test_a_class_is_chosen_and_an_image_is_opened_and_closed_by_keyboard(opened: Opened) -> None:
    page = opened.page
    tab_to(page, "#filter")
    page.keyboard.type("ag")
    visible = page.locator(".choices label:visible")
    assert [re.sub(r"[^a-z ].*", "", text) for text in visible.all_inner_texts()] == ["bag"]
    assert page.locator("#found").inner_text() == "1 of 10 classes"
    page.keyboard.press("ControlOrMeta+A")
    page.keyboard.press("Backspace")
    page.keyboard.press("Tab")
    first = page.locator("#stage h3").inner_text()
    page.keyboard.press("ArrowDown")
    second = page.locator("#stage h3").inner_text()
    assert focused(page, "type") == "radio" and first != second
    tab_to(page, ".thumb")
    name = str(focused(page, "querySelector('img').alt"))
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    assert dialog.is_visible() and dialog.get_by_role("heading").inner_text() == name
    assert focused(page, "textContent") == "Close", "the focus is in the dialog"
    for _ in range(6):
        page.keyboard.press("Tab")
        assert page.evaluate(
            "document.activeElement === document.body || document.activeElement.closest('dialog') !== null"
        ), "and stays there"
    page.keyboard.press("ArrowRight")
    assert dialog.get_by_role("heading").inner_text() != name
    terms = dialog.locator("dt").all_inner_texts()
    assert terms[:3] == ["Method", "Class", "Image"]
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert focused(page, "querySelector('img').alt") == name, "the focus is back where it was"


def test_every_image_opens_into_what_its_shard_says(opened: Opened) -> None:
    page, known = opened.page, set()
    for strip in page.locator("#stage .strip").all():
        strip.locator(".thumb").first.click()
        known |= set(page.locator("dialog dt").all_inner_texts())
        page.keyboard.press("Escape")
    assert {
        "Prompt",
        "Seed",
        "Model",
        "Started from",
        "Found at",
        "Query",
        "Similarity to the query",
    } <= known


def test_a_class_in_the_table_leads_to_its_images(opened: Opened) -> None:
    link = opened.page.locator("#classes tbody tr:last-child a[data-class]")
    name = link.inner_text()
    link.press("Enter")
    assert opened.page.locator("#stage h3").inner_text() == name
    assert opened.page.evaluate("location.hash") == "#images"
