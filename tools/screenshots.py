"""Take a screenshot of a page in a browser: python tools/screenshots.py PAGE.html OUT.png"""

import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@contextmanager
def browser():
    """Start the installed Chromium, headless."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def take_picture(browser, page, path, width, height=None):
    """Save a screenshot of a page: the whole page, or its first ``height`` pixels."""
    context = browser.new_context(viewport={"width": width, "height": height or 900})
    tab = context.new_page()
    tab.goto(Path(page).resolve().as_uri())
    tab.screenshot(path=path, full_page=height is None)
    context.close()


if __name__ == "__main__":
    with browser() as chromium:
        take_picture(chromium, sys.argv[1], sys.argv[2], 1100, 1150)
