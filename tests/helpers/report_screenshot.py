"""Write the README's picture of a report: top in light mode beside emotions and time in dark mode.

python -m tests.helpers.report_screenshot RUN_DIR docs/img/report.png
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from selfemo.records.reading import read_run
from selfemo.report.page import render, write_page
from tests.report.test_browser import CHROMIUM, TIMEOUT_MS

WIDTH, HEIGHT, SHOWN_WIDTH = 1180, 1460, 1600


def main(run_dir: Path, target: Path) -> None:
    """Render the page, photograph it, and join the pictures."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_path = Path(folder) / "report.html"
        write_page(page_path, render(read_run(run_dir)))
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], timeout=TIMEOUT_MS
        )
        joined = Image.new("RGB", (2 * WIDTH, HEIGHT))
        for index, (scheme, anchor) in enumerate((("light", "body"), ("dark", "#emotions"))):
            page = browser.new_context(
                viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme
            ).new_page()
            page.goto(page_path.as_uri())
            top = page.evaluate(
                f"Math.max(0, document.querySelector('{anchor}').getBoundingClientRect().top - 24)"
            )
            file = Path(folder) / f"{scheme}.png"
            page.add_style_tag(content="nav { position: static !important; }")
            page.screenshot(
                path=file, full_page=True, clip={"x": 0, "y": top, "width": WIDTH, "height": HEIGHT}
            )
            joined.paste(Image.open(file).convert("RGB"), (index * WIDTH, 0))
        browser.close()
    target.parent.mkdir(parents=True, exist_ok=True)
    small = joined.resize((SHOWN_WIDTH, round(HEIGHT * SHOWN_WIDTH / joined.width)), Image.Resampling.LANCZOS)
    small.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
