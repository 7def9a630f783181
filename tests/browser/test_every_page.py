"""What holds of all pages: width, colours, motion, keyboard, accessibility, size, caching."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

PAGES = {
    "/": "#folder-state:not([hidden])",
    "/universe": "#universe tbody tr",
    "/runs": "#runs tbody tr",
    "/kept": "#kept:not([aria-busy]), #kept .empty",
    "/no-such-page": "main h1",
}
SERIOUS = ("serious", "critical")


def open_whole(here, path: str):
    if path == "/no-such-page":
        here.expected.add(404)
    page = here.open(path)
    page.wait_for_selector(PAGES[path])
    return page


def faults_of(page) -> list[str]:
    """Serious and critical findings of axe-core, a line each."""
    axe = pytest.importorskip("axe_playwright_python.base", reason="needs axe-playwright-python")
    # By the debugger, which the page's own policy does not bind.
    page.evaluate(Path(axe.AXE_FILE_PATH).read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [
        f"{one['id']}: {node['html']} {node['failureSummary']}"
        for one in found["violations"]
        if one["impact"] in SERIOUS
        for node in one["nodes"]
    ]


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (390, "dark")])
def test_a_page_fits_and_axe_finds_no_serious_fault(visit, path, width, scheme):
    here = visit(width=width, color_scheme=scheme)
    page = open_whole(here, path)
    assert here.overflow() == 0
    assert faults_of(page) == []
    assert page.locator("h1").count() == 1
    assert page.evaluate("document.documentElement.lang") == "en"


@pytest.mark.parametrize(("width", "scheme"), [(1400, "dark"), (390, "light")])
def test_a_forecast_fits_and_axe_finds_no_serious_fault(visit, width, scheme):
    here = visit(width=width, judges=True, color_scheme=scheme)
    here.open("/")
    page = here.forecast()
    page.click("summary:text-is('The numbers')")
    page.click("summary:text-is('Where this comes from')")
    page.wait_for_selector("#record caption:has-text('windows of')")
    assert here.overflow() == 0
    clipped = page.evaluate(
        """() => [...document.querySelectorAll('.facts dd, .lead, .verdict, h2, .tools button')]
            .filter(node => node.scrollWidth > node.clientWidth + 1).map(node => node.innerText)"""
    )
    assert clipped == []
    assert faults_of(page) == []


def test_a_comparison_fits_and_axe_finds_no_serious_fault(visit):
    here = visit(width=390)
    page = open_whole(here, "/runs")
    for box in page.locator("#runs tbody input").all():
        box.check()
    page.click("button:text-is('Compare')")
    page.wait_for_selector("#comparison[data-drawn]")
    assert here.overflow() == 0
    assert faults_of(page) == []


def test_colours_follow_the_reader_while_the_page_is_open(visit):
    here = visit(color_scheme="light")
    here.open("/")
    page = here.forecast()
    look = """() => [getComputedStyle(document.body.parentElement).backgroundColor,
        document.querySelector('.chart.tall').layout.xaxis.tickfont.color]"""
    light = page.evaluate(look)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"before => ({look})()[1] !== before", arg=light[1])
    dark = page.evaluate(look)
    assert light[0] != dark[0]


def test_nothing_moves_for_who_asked_for_that(visit):
    here = visit(reduced_motion="reduce")
    page = open_whole(here, "/")
    moving = """() => [...document.querySelectorAll('*')].filter(node => {
        const style = getComputedStyle(node);
        return style.animationName !== 'none' || style.transitionDuration.split(', ')
            .some(time => parseFloat(time) > 0);
    }).length"""
    assert page.evaluate(moving) == 0
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(moving) > 0


def test_the_whole_form_is_reached_and_sent_by_keys(visit):
    here = visit()
    page = open_whole(here, "/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "source"
    reached = []
    for _ in range(25):
        page.keyboard.press("Tab")
        state = page.evaluate(
            """() => { const node = document.activeElement; const style = getComputedStyle(node);
            const near = getComputedStyle(node.nextElementSibling ?? node);
            return [node.id, style.outlineStyle !== 'none' || near.outlineStyle !== 'none']; }"""
        )
        reached.append(state[0])
        assert state[1], f"the focus on {state[0]} is not to be seen"
        if state[0] == "instrument":
            page.keyboard.type(here.site.instruments[0])
        if state[0] == "go":
            page.keyboard.press("Enter")
            break
    assert {"instrument", "date", "checkpoint", "horizon", "paths", "seed", "go"} <= set(reached)
    here.drawn()
    assert page.evaluate("document.activeElement.id") == "forecast-title"


def test_a_first_load_is_small_and_the_second_comes_from_the_cache(visit):
    here = visit(judges=True)  # a route of playwright's would put the browser's cache out of use
    page = open_whole(here, "/")
    own = [one for one in here.answers if "/static/" in one.url]
    assert own and all(one.headers["cache-control"].endswith("immutable") for one in own)
    assert all("etag" in one.headers for one in own)
    sizes = page.evaluate(
        "performance.getEntriesByType('resource').map(one => [one.name, one.encodedBodySize])"
    )
    whole = sum(size for name, size in sizes if "plotly" not in name)
    assert 0 < whole < 2_000_000
    assert not any("plotly" in name for name, _ in sizes), "the first paint waits for no chart"
    here.forecast()
    page.reload()
    page.wait_for_selector("#forecast[data-drawn]")
    again = page.evaluate(
        """performance.getEntriesByType('resource').filter(one => one.name.includes('/static/'))
            .map(one => [one.name, one.transferSize])"""
    )
    assert any("plotly" in name for name, _ in again)
    assert [name for name, size in again if size > 0] == []


def test_no_style_or_script_stands_in_a_page(visit):
    here = visit()
    read = "async path => (await fetch(path, { headers: { Accept: 'text/html' } })).text()"
    for path in PAGES:
        source = open_whole(here, path).evaluate(read, path).lower()
        assert "<style" not in source and " style=" not in source
        assert not re.search(r"<[^>]+\son[a-z]+=", source)
        assert source.count("<script") == source.count('<script type="module" src="/static/') > 0


def test_a_script_that_gets_into_a_page_does_not_run(visit):
    here = visit()
    page = open_whole(here, "/")
    broken = page.evaluate(
        """() => new Promise(done => {
            document.addEventListener("securitypolicyviolation",
                event => done(event.violatedDirective));
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.body.append(script);
            setTimeout(() => done("nothing was refused"), 2000);
        })"""
    )
    assert broken.startswith("script-src") and not page.evaluate("'ran' in window")
    here.said = [text for text in here.said if "Content Security Policy" not in text]


def test_the_page_says_when_the_model_is_there(visit):
    here = visit()
    page = open_whole(here, "/")
    page.wait_for_selector("#health.ready")
    assert urlsplit(page.url).path == "/"
