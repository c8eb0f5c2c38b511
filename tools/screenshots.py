"""Pictures of a page as a browser shows it: python tools/screenshots.py PAGE.html OUT.png"""

import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@contextmanager
def browser():
    """The installed Chromium, without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


def take_picture(browser, page, path, width, height=None):
    """Write a picture of a page, whole or of its first ``height`` pixels."""
    context = browser.new_context(viewport={"width": width, "height": height or 900})
    opened = context.new_page()
    opened.goto(Path(page).resolve().as_uri())
    opened.screenshot(path=path, full_page=height is None)
    context.close()


if __name__ == "__main__":
    with browser() as found:
        take_picture(found, sys.argv[1], sys.argv[2], 1100, 1150)
