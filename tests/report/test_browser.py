"""Test the page in a real Chromium: no errors, no requests, phone width, dark mode, keyboard.

A live page keeps its place. The tests are skipped if the machine has no chromium (Debian: apt-get
install chromium); the driver is playwright's, the browser the system's.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfemo.records.reading import read_run
from selfemo.report.page import render, write_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"),
]
TIMEOUT_MS = 180_000
"""Milliseconds, for a machine that is busy with other things."""
PHONE, DESK = {"width": 375, "height": 740}, {"width": 1200, "height": 900}
OVERFLOWING = """() => [...document.querySelectorAll("body *")].filter(e =>
  e.getBoundingClientRect().right > innerWidth + 1
  && !e.closest(".scroll") && !e.closest("nav ul") && !e.closest("svg")
).map(e => e.tagName + "." + e.className)"""
CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const behind = element => { const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(rgba(getComputedStyle(e).backgroundColor));
    const over = (below, [r, g, b, a]) => [r, g, b].map((c, i) => c * a / 255 + below[i] * (1 - a / 255));
    return layers.reverse().reduce(over, [255, 255, 255]); };
  const luminance = rgb => rgb.map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const texts = "h1, h2, h3, p, th, td, dt, dd, li span, .chip, .change, summary, text, a, button";
  return [...document.querySelectorAll(texts)]
    .filter(e => e.textContent.trim() && e.checkVisibility())
    .map(e => {
      const style = getComputedStyle(e); const ink = e.tagName === "text" ? style.fill : style.color;
      const contrast = ratio(luminance(rgba(ink).slice(0, 3)), luminance(behind(e)));
      return [contrast, `${e.tagName}.${e.getAttribute("class")}: ${e.textContent.slice(0, 30)}`]; });
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], timeout=TIMEOUT_MS
        )
        yield running
        running.close()


class Visit:
    """A page that was opened, with every error and request of the browser."""

    def __init__(self, browser, path: Path, viewport: dict = DESK, scheme: str = "light") -> None:
        self.problems: list[str] = []
        self.requests: list[str] = []
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        self.page = context.new_page()
        self.page.set_default_timeout(TIMEOUT_MS)
        self.page.on("console", lambda message: self.problems.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def evaluate(self, script: str):
        """Evaluate a script in the page; again if the page was loading itself anew meanwhile."""
        from playwright.sync_api import Error

        for _ in range(3):
            try:
                return self.page.evaluate(script)
            except Error as error:
                if "Execution context was destroyed" not in str(error):
                    raise
                self.page.wait_for_load_state()
        return self.page.evaluate(script)

    def focused(self, script: str):
        return self.page.evaluate(f"(e => {script})(document.activeElement)")

    def press_until(self, key: str, condition: str, most: int = 200) -> None:
        for _ in range(most):
            self.page.keyboard.press(key)
            if self.focused(condition):
                return
        raise AssertionError(f"{key} never reached: {condition}")


@pytest.fixture(scope="module")
def path(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("page") / "report.html"
    write_page(target, render(read_run(finished)))
    return target


@pytest.mark.parametrize(
    ("viewport", "scheme"), [(DESK, "light"), (DESK, "dark"), (PHONE, "light"), (PHONE, "dark")]
)
def test_it_opens_without_errors_and_asks_for_nothing(browser, path: Path, viewport: dict, scheme: str):
    visit = Visit(browser, path, viewport, scheme)
    visit.page.click("#toggle-dialogues")
    assert visit.evaluate(
        "[...document.querySelectorAll('details.dialogue[id^=dialogue]')].every(box => box.open)"
    )
    assert visit.problems == []
    assert visit.requests == [path.as_uri()]
    assert visit.evaluate("window.ran") is None  # the markup in dialogue texts never ran
    assert visit.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert visit.evaluate(OVERFLOWING) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(browser, path: Path, scheme: str):
    """Compute contrast by WCAG AA: 4.5 to 1 for text of any size, in charts too."""
    visit = Visit(browser, path, DESK, scheme)
    visit.evaluate("document.querySelectorAll('details').forEach(box => { box.open = true; })")
    measured = visit.evaluate(CONTRASTS)
    assert len(measured) > 300
    assert [entry for entry in measured if entry[0] < 4.5] == []
    page = visit.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(page.removeprefix("rgb(").split(",")[0])
    assert red < 64 if scheme == "dark" else red > 192


def test_charts_have_lines_and_follow_the_colour_scheme(browser, path: Path):
    colours = {}
    for scheme in ("light", "dark"):
        visit = Visit(browser, path, DESK, scheme)
        boxes = visit.evaluate(
            "[...document.querySelectorAll('main svg')].map(e => e.getBoundingClientRect().height)"
        )
        assert len(boxes) >= 14
        assert min(boxes) > 60
        colours[scheme] = visit.evaluate(
            "getComputedStyle(document.querySelector('#curves svg path[style*=\"--c0\"]')).stroke"
        )
    assert colours["light"] != colours["dark"]


def test_everything_can_be_reached_and_opened_by_keyboard(browser, path: Path):
    visit = Visit(browser, path)
    visit.page.keyboard.press("Tab")
    assert visit.focused("e.className") == "skip"
    assert visit.focused("e.getBoundingClientRect().left >= 0")  # shown while it has the focus
    visit.page.keyboard.press("Tab")
    assert visit.focused("e.closest('nav') !== null")
    assert visit.focused("getComputedStyle(e).outlineStyle") != "none"
    # Arrow keys scroll a table that may be wider than a phone.
    visit.press_until("Tab", "e.matches('.scroll')")
    visit.press_until(
        "Tab",
        "e.tagName === 'SUMMARY' && e.parentElement.id.startsWith('dialogue-') && !e.parentElement.open",
    )
    visit.page.keyboard.press("Enter")
    assert visit.focused("e.parentElement.open")
    visit.press_until("Tab", "e.tagName === 'SUMMARY' && e.parentElement.className === 'group'")
    visit.page.keyboard.press("Space")
    assert visit.focused("e.parentElement.open && e.parentElement.querySelectorAll('td').length > 0")


def test_a_live_page_follows_the_run_and_keeps_what_is_open(
    browser, live: Path, finished: Path, tmp_path: Path
):
    path = tmp_path / "live.html"
    write_page(path, render(read_run(live), refresh_s=1))
    visit = Visit(browser, path)
    visit.evaluate("document.getElementById('dialogue-1').open = true")
    visit.page.click("#pause")
    assert visit.page.text_content("#pause") == "Paused: follow again"
    write_page(path, render(read_run(finished), refresh_s=1))
    visit.page.wait_for_timeout(2500)
    assert visit.page.text_content(".pill") == "5 of 5 iterations"  # paused: nothing moved
    visit.page.click("#pause")
    visit.page.locator(".pill", has_text="finished").wait_for()
    visit.page.locator("#dialogue-1[open]").wait_for()  # a script's string would offend the page's policy
    write_page(path, render(read_run(finished)))
    visit.page.locator("#pause").wait_for(state="detached")
    assert visit.problems == []
