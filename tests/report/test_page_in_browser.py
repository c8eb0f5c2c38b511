"""The page in a browser: filter, sort, choices, print, dark mode, without JavaScript."""

import re
import shutil

import pandas as pd
import pytest
import screenshots
from test_curves import CONFIG
from test_page import make_run

from robust_ham.analysis.run import Run
from robust_ham.report import page as page_module
from robust_ham.report.page import build_report
from robust_ham.storage.parquet_tables import write_table

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'"
)
pytestmark = pytest.mark.skipif(
    screenshots.CHROMIUM is None, reason="no browser found: apt-get install chromium"
)
THIRTY = CONFIG.replace("    kernel_size: 3\n", "").replace(
    "window: [none, hamming], seed: [0, 1]",
    "kernel_size: [3, 5, 7, 9, 11], window: [none, hamming], seed: [0, 1, 2]",
)
MEASURED = {"effective_width": 3.0, "effective_width_learned": 2.0, "flops": 5_000_000}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("run"), THIRTY, size=32, **MEASURED)
    predictions = pd.DataFrame({"prediction": [0, 1, 1, 3], "label": [0, 1, 2, 3]})
    for spec in Run(run).specs:
        write_table(run.predictions(spec.model_id), predictions, {})
    return build_report(run.root).page


@pytest.fixture(scope="module")
def paged(address, tmp_path_factory):
    """Build the same page as if it had too many models for plain tables."""
    folder = shutil.copytree(address.parent, tmp_path_factory.mktemp("paged") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_module, "MANY_MODELS", 20)
        return build_report(folder).page


@pytest.fixture(scope="module")
def browser():
    with screenshots.browser() as chromium:
        yield chromium


@pytest.fixture
def open_page(browser, address, paged):
    """Open the page; any console message, error or network request fails the test."""
    messages, contexts = [], []

    def opened(width=1280, address=address, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: messages.append(request.url))
        page.goto(address.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    pages = ("data:", address.as_uri(), paged.as_uri())
    unexpected = [t for t in messages if not (t.startswith(pages) or t.endswith("short.html"))]
    assert unexpected == []


def shown(page, selector):
    return page.locator(f"{selector}:visible")


def test_thirty_models_fit_in_five_megabytes(address):
    assert address.read_text().count("<tr><td") > 60
    assert address.stat().st_size < 5_000_000


@pytest.mark.parametrize("width", [390, 800, 1440])
def test_it_fits_every_screen(open_page, browser, address, width, tmp_path):
    page = open_page(width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    screenshots.take_picture(browser, address, tmp_path / "page.png", width)
    assert (tmp_path / "page.png").stat().st_size > 50_000


def test_attack_measure_and_axis_are_chosen(open_page):
    page = open_page()
    panels = shown(page, ".panel figcaption")
    assert panels.all_inner_texts() == [
        "clean images: accuracy against kernel size k",
        "DeepFool L2: robust area (L2 up to 0.5) against kernel size k",
    ]
    page.select_option("select[name=axis]", "params")
    assert panels.all_inner_texts() == [
        "clean images: accuracy against parameters",
        "DeepFool L2: robust area (L2 up to 0.5) against parameters",
    ]
    page.select_option("select[name=metric]", "rho_adv")
    assert panels.last.inner_text() == "DeepFool L2: ρ_adv against parameters"
    page.select_option("select[name=attack] >> nth=0", "s")  # has one measure only
    assert panels.count() == 2
    assert "grid: accuracy under attack against parameters" in panels.last.inner_text()
    assert page.input_value("select[name=metric]") == "robust_accuracy"
    assert page.locator("select[name=metric] option:not([disabled])").count() == 1
    page.select_option("select[name=network]", "k = 11")
    titles = shown(page, ".strip h3").all_inner_texts()
    assert titles == ["baseline, k = 11 DeepFool L2", "Hamming, k = 11 DeepFool L2"]


def test_the_table_is_filtered(open_page):
    page = open_page()
    rows, count = shown(page, "#all-models tbody tr"), page.locator("form[data-filter] output")
    assert count.inner_text() == "60 of 60 rows"
    page.get_by_label("rows containing").fill("HAMMING  -s1")
    assert count.inner_text() == "10 of 60 rows"
    assert rows.count() == 10
    page.select_option("form[data-filter] select[name=attack]", "d")
    page.select_option("form[data-filter] select[name=k]", "11")
    assert count.inner_text() == "1 of 60 rows"
    assert rows.first.inner_text().startswith("cnn2-w4-f7-k11-hamming-s1")


def test_the_table_is_sorted(open_page):
    page = open_page()
    heading = page.locator("#all-models th", has_text="robust area")
    headings = page.locator("#all-models th button").all_inner_texts()
    names = [name.removesuffix(" ↕").strip() for name in headings]

    def column(name):
        place = names.index(name) + 1
        return page.locator(f"#all-models tbody td:nth-child({place})").all_inner_texts()

    assert column("k")[:4] == ["3", "3", "3", "3"]
    page.locator("#all-models th button").nth(names.index("k")).click()
    assert column("k") == [str(k) for k in (3, 5, 7, 9, 11) for _ in range(12)]  # sorted as numbers
    page.locator("#all-models th button").nth(names.index("k")).click()
    assert column("k") == [str(k) for k in (11, 9, 7, 5, 3) for _ in range(12)]
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    area = column("robust area")
    assert area == ["0.317"] * 30 + ["–"] * 30  # missing values come last


def test_it_reads_without_javascript(open_page):
    page = open_page(java_script_enabled=False)
    assert shown(page, "form").count() == 0
    assert shown(page, ".panel").count() == page.locator(".panel").count() > 20
    assert shown(page, ".strip").count() == 10
    assert shown(page, "#all-models tbody tr").count() == 60


def test_printing_shows_everything_on_white(open_page):
    page = open_page(color_scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(paper) == "rgb(20, 22, 26)"
    page.emulate_media(media="print")
    assert page.evaluate(paper) == "rgb(255, 255, 255)"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert shown(page, ".panel").count() == page.locator(".panel").count()
    assert page.locator("details:not([open])").count() == 0
    assert page.pdf().startswith(b"%PDF")


def test_every_picture_has_a_text(open_page):
    page = open_page()
    unnamed = "[...document.querySelectorAll('.sheet')].filter(e => !e.ariaLabel).length"
    assert page.evaluate(unnamed) == 0
    assert page.locator("img:not([alt]), img[alt='']").count() == 0


def test_the_configuration_can_be_saved(open_page, address):
    page = open_page()
    with page.expect_download() as saved:
        page.get_by_role("link", name="configuration").click()
    assert saved.value.suggested_filename == "made_by_hand.yaml"
    assert "name: made_by_hand" in saved.value.path().read_text()


def test_the_table_of_many_models_is_paged(open_page, paged):
    page = open_page(address=paged)
    rows, form = shown(page, "#all-models tbody tr"), page.locator("form[data-pages=all-models]")
    output = form.locator("output")
    assert output.inner_text() == "rows 1 to 60 of 60"
    plain = open_page()
    cells = "[...document.querySelectorAll('#all-models tbody tr')].map(r => r.innerText)"
    assert page.evaluate(cells) == plain.evaluate(cells)
    heads = "[...document.querySelectorAll('#all-models th')].map(h => h.innerText)"
    assert page.evaluate(heads) == plain.evaluate(heads)
    for opened in (page, plain):
        opened.locator("#all-models th button", has_text="robust area").click()
    assert page.evaluate(cells) == plain.evaluate(cells)
    form.get_by_label("rows containing").fill("HAMMING  -s1")
    assert output.inner_text() == "rows 1 to 10 of 10 (of 60 in all)"
    form.locator("select[name=attack]").select_option("d")
    form.locator("select[name=k]").select_option("11")
    assert rows.count() == 1
    assert rows.first.inner_text().startswith("cnn2-w4-f7-k11-hamming-s1")


def test_pages_are_turned(open_page, paged, tmp_path):
    short = tmp_path / "short.html"
    script = "const ROWS_OF_A_PAGE = 100;"
    text = paged.read_text()
    assert text.count(script) == 1
    policy = re.compile(r"script-src [^;]*;")  # another script has another hash
    text = policy.sub(
        "script-src 'unsafe-inline';", text.replace(script, script.replace("100", "25"))
    )
    short.write_text(text)
    page = open_page()
    page.goto(short.as_uri())
    form = page.locator("form[data-pages=all-models]")
    previous, following = form.locator("button").all()
    assert previous.is_disabled()
    following.click()
    following.click()
    assert form.locator("output").inner_text() == "rows 51 to 60 of 60"
    assert following.is_disabled()
    assert shown(page, "#all-models tbody tr").count() == 10
    previous.click()
    assert form.locator("output").inner_text() == "rows 26 to 50 of 60"


def test_a_paged_table_says_that_it_needs_javascript(open_page, paged):
    page = open_page(address=paged, java_script_enabled=False)
    assert "This table needs JavaScript." in page.inner_text("body")
    assert "all 60 are in summary.csv" in page.inner_text("body")


def test_pictures_of_a_long_page_look_the_same(open_page, paged):
    colours = (
        "[...document.querySelectorAll('.panel svg *')].map(e => { const s = getComputedStyle(e);"
        "return [e.tagName, s.fill, s.stroke, s.strokeWidth, s.fontSize].join() })"
    )
    assert open_page(address=paged).evaluate(colours) == open_page().evaluate(colours)
