"""The page in real Chromium: the main path, titles that look like HTML, a server that goes away."""

import shutil
from contextlib import ExitStack, contextmanager

import polars as pl
import pytest

from tallrec.data.prepared import PreparedInfo, write_prepared
from tallrec.serve.limits import Limits
from tallrec.serve.model import ServedModel
from tallrec.serve.service import Settings
from tallrec.steps.tune import tune_recipe
from tallrec.types import Splits
from tests.planted import planted_splits
from tests.serve.test_api import TOKEN
from tests.test_pipeline import silent, tiny_recipe

NASTY = '<img src=x onerror="document.title=`taken`"> & "quotes" \'n\' </script>'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)"
)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_folder):
    """A model that is not tuned, and a catalogue with a title that would be HTML."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "model").symlink_to(tiny_folder)
    splits = planted_splits(users=8)
    titles = splits.train.catalog.with_columns(
        title=pl.when(pl.col("item") == "i7").then(pl.lit(NASTY)).otherwise("title"),
        creator=pl.lit("Ada"),
    )
    parts = (type(part)(titles, part.events, part.rows) for part in splits.parts().values())
    info = PreparedInfo("planted", "movie", "users", 8, 8, 3.0, 0)
    write_prepared(folder / "data", Splits(*parts), info)
    recipe = tiny_recipe(folder, "seeds=[0]", "stages=[]")
    tune_recipe(recipe, folder / "run", data=folder / "data", say=silent)
    return ServedModel.load(folder / "run")


@pytest.fixture
def open_page(browser):
    """Opens the page of a server and fails on any error in it or request to elsewhere."""
    contexts, wrong = [], []

    @contextmanager
    def opened(client, path="/", **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        here = f"http://127.0.0.1:{client.port}/"
        page.on("request", lambda r: r.url.startswith(here) or wrong.append(r.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda m: "Security Policy" in m.text and wrong.append(m.text))
        page.goto(here + path.lstrip("/"))
        yield page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def ranked(page):
    page.locator("#state", has_text="Best").wait_for()
    return page.locator("#ranked .title").all_text_contents()


def like(page, title):
    page.get_by_role("combobox").fill(title)
    page.get_by_role("option", name=title).first.wait_for()
    page.keyboard.press("Enter")


def test_the_main_path_by_keyboard_alone(serving, model, open_page):
    with serving(model) as client, open_page(client) as page:
        assert len(ranked(page)) == 10
        page.keyboard.press("Tab")
        page.keyboard.type("sea 1")
        page.get_by_role("option").first.wait_for()
        first = page.locator("#found li .title").first.text_content().removesuffix(" by Ada")
        page.keyboard.press("Enter")
        page.keyboard.type("hill 2")
        page.get_by_role("option").first.wait_for()
        page.keyboard.press("ArrowDown")
        second = page.locator("#found li[aria-selected=true] .title").text_content()
        page.keyboard.press("Shift+Enter")
        said = page.locator("#history .title")
        assert said.all_text_contents() == [first, second.removesuffix(" by Ada")]
        pressed = page.locator("#history [aria-pressed=true]").all_text_contents()
        assert pressed == ["Liked", "Disliked"]
        titles = ranked(page)
        assert not {first, second.removesuffix(" by Ada")} & set(titles)
        shown = "bars => bars.map(b => [+b.ariaValueNow, b.firstChild.offsetWidth / b.offsetWidth])"
        bars = page.locator("#ranked [role=meter]").evaluate_all(shown)
        assert bars == sorted(bars, reverse=True)
        assert all(width == pytest.approx(value, abs=0.01) for value, width in bars)

        page.get_by_role("button", name="Why?").first.focus()
        page.keyboard.press("Enter")
        page.locator("#ranked .effect").first.wait_for()
        assert page.locator("#ranked .effect").count() == 2
        page.get_by_role("button", name="Like it").first.focus()
        page.keyboard.press("Enter")
        page.locator("#ranked [aria-pressed=true]").wait_for()
        user = page.evaluate("localStorage.getItem('user')")
        (kept,) = client.service.store.of_user(user)
        assert kept.liked
        assert titles[0].startswith(kept.title)

        page.get_by_text("Your data").click()
        page.get_by_role("button", name="Delete what is stored").click()
        page.get_by_text('"deleted": 1').wait_for()
        assert client.service.store.of_user(user) == []
        assert "not tuned, 22 movies" in page.locator("#card").text_content()


def test_a_title_of_html_and_quotes_stays_text(serving, model, open_page):
    ten = Settings(Limits(items=10))  # all that are ranked are shown, and it is one of them
    with serving(model, ten) as client, open_page(client) as page:
        like(page, "img src")
        page.locator("#history li").wait_for()
        assert page.locator("#history .title").text_content() == NASTY
        page.get_by_role("button", name="Why?").first.click()
        page.get_by_text(f"because you liked {NASTY}").wait_for()
        page.get_by_role("button", name=f"Remove {NASTY}").click()
        page.locator("#history li").wait_for(state="detached")
        page.locator("#ranked .title", has_text=NASTY).wait_for()
        assert page.locator("#ranked img, #history img, #found img").count() == 0
        assert page.title() == "Recommendations · tallrec"


def test_the_page_says_that_the_server_is_away_and_goes_on_when_it_is_back(
    serving, model, open_page
):
    with ExitStack() as stack:
        with serving(model) as client:
            page = stack.enter_context(open_page(client))
            ranked(page)
        page.get_by_role("button", name="Like it").first.click()
        page.get_by_text("Not stored: The service does not answer").wait_for()
        page.get_by_role("combobox").fill("sea 3")
        page.get_by_text("The service does not answer. Trying again …", exact=True).wait_for()
        stack.enter_context(serving(model, port=client.port))
        page.get_by_role("option", name="Sea 3").first.wait_for()
        page.keyboard.press("Enter")
        page.locator("#history li").wait_for()
        ranked(page)
        assert page.locator("#trouble").is_hidden()


def test_the_page_asks_for_the_token(serving, model, open_page):
    with serving(model, Settings(token=TOKEN)) as client, open_page(client) as page:
        page.get_by_label("This service asks for a token").fill(TOKEN)
        page.keyboard.press("Enter")
        assert len(ranked(page)) == 10
        assert page.locator("#access").is_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it_without_scrolling_sideways(serving, model, open_page, scheme):
    phone = {"viewport": {"width": 360, "height": 740}, "color_scheme": scheme, "has_touch": True}
    with serving(model) as client, open_page(client, **phone) as page:
        like(page, "img src")
        ranked(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        shade = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (shade == "rgb(20, 24, 26)") is (scheme == "dark")
