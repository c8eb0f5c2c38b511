"""The page in a browser: filter, sort, choices, paper, dark, without JavaScript."""

import pandas as pd
import pytest
import screenshots
from test_curves import CONFIG
from test_report import make_run

from robust_ham.analysis.run import Run
from robust_ham.parquet_tables import write_table
from robust_ham.report.page import build_report

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
def browser():
    with screenshots.browser() as found:
        yield found


@pytest.fixture
def open_page(browser, address):
    """Opens the page; anything it complains of, or asks the network for, fails the test."""
    complaints, contexts = [], []

    def opened(width=1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url))
        page.goto(address.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    asked = [text for text in complaints if not text.startswith(("data:", address.as_uri()))]
    assert asked == []


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
    page.select_option("select[name=attack] >> nth=0", "s")  # of which there is one measure alone
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
    page.get_by_label("rows that hold").fill("HAMMING  -s1")
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
    assert column("k") == [str(k) for k in (3, 5, 7, 9, 11) for _ in range(12)]  # not as words
    page.locator("#all-models th button").nth(names.index("k")).click()
    assert column("k") == [str(k) for k in (11, 9, 7, 5, 3) for _ in range(12)]
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    area = column("robust area")
    assert area == ["0.317"] * 30 + ["–"] * 30  # what is missing comes last


def test_it_reads_without_javascript(open_page):
    page = open_page(java_script_enabled=False)
    assert shown(page, "form").count() == 0
    assert shown(page, ".panel").count() == page.locator(".panel").count() > 20
    assert shown(page, ".strip").count() == 10
    assert shown(page, "#all-models tbody tr").count() == 60


def test_paper_shows_everything_on_white(open_page):
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
