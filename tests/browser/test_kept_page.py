"""Kept forecasts in a browser: listed, reopened, compared, reconciled, deleted, judged."""

from __future__ import annotations

import json


def keep_one(here, instrument: int, **how) -> str:
    """The id of a new kept forecast."""
    here.open("/")
    here.forecast(here.site.instruments[instrument], **how)
    return here.page.url.rpartition("=")[2]


def test_what_is_kept_is_listed_and_opens_again(visit):
    here = visit()
    name = here.site.instruments[2]
    kept = keep_one(here, 2)
    written = json.loads((here.site.store / f"{kept}.json").read_text(encoding="utf-8"))
    assert written["forecast"]["instrument"] == name
    page = here.open("/kept")
    page.fill("#filter", name)
    page.wait_for_selector("#kept tbody tr")
    page.wait_for_function(
        "name => [...document.querySelectorAll('#kept tbody th')].every(c => c.innerText === name)",
        arg=name,
    )
    page.click(f"#kept a[href='/kept/{kept}']")
    page.wait_for_selector("#forecast[data-drawn]")
    assert page.locator("#forecast-title").inner_text().startswith(name)


def test_a_forecast_that_is_not_to_be_kept_is_not(visit):
    here = visit()
    page = here.open("/")
    page.uncheck("#keep")
    page = here.forecast(here.site.instruments[3], seed="77")
    assert "not kept" in page.locator(".meta").inner_text()
    page = here.open("/kept")
    page.fill("#filter", here.site.instruments[3])
    page.wait_for_selector("text=Nothing matches")


def test_two_are_set_side_by_side(visit):
    here = visit()
    keep_one(here, 4)
    keep_one(here, 4, seed="5")
    page = here.open("/kept")
    page.fill("#filter", here.site.instruments[4])
    page.wait_for_function("() => document.querySelectorAll('#kept tbody tr').length === 2")
    assert page.is_disabled("text=Compare two")
    for box in page.locator("#kept tbody input").all():
        box.check()
    page.click("text=Compare two")
    page.wait_for_selector("#comparison[data-drawn]")
    differing = page.locator("#comparison tr:has(td:text-is('≠')) th").all_inner_texts()
    assert "Seed" in differing and "Instrument" not in differing


def test_bars_that_came_since_are_added(visit, bars):
    here = visit()
    page = here.open("/")
    one = bars[bars["symbol"] == here.site.instruments[5]].drop(columns="symbol")
    early, late = (
        {"name": "five.csv", "mimeType": "text/csv", "buffer": part.to_csv(index=False).encode()}
        for part in (one.iloc[:150], one.iloc[:155])
    )
    page.check("input[value=file]", force=True)
    page.set_input_files("#file", early)
    here.settle()
    page.click("#go")
    here.drawn()
    page.goto(f"{here.site.address}/kept/{page.url.rpartition('=')[2]}")
    page.wait_for_selector("#forecast[data-drawn]")
    assert "cannot be judged yet" in page.locator("#record").inner_text()
    with page.expect_file_chooser() as chooser:
        page.click("text=Reconcile with what came")
    chooser.value.set_files(late)
    page.wait_for_selector("#record >> text=This very window")
    assert page.locator("text=Reconcile with what came").count() == 0


def test_deleting_asks_first(visit):
    here = visit()
    kept = keep_one(here, 6)
    page = here.open("/kept")
    page.fill("#filter", here.site.instruments[6])
    delete = f"button[aria-label='Delete the forecast of {here.site.instruments[6]} after "
    delete += f"{here.site.seen_until}']"
    page.wait_for_selector("#kept tbody tr")
    page.click(delete)
    page.click("dialog >> text=Keep it")
    assert (here.site.store / f"{kept}.json").exists()
    page.click(delete)
    page.click("dialog >> text=Delete >> nth=-1")
    page.wait_for_selector("#said:has-text('is deleted')")
    assert not (here.site.store / f"{kept}.json").exists()
    here.expected.add(404)
    here.open(f"/kept/{kept}")
    page.wait_for_selector("#error .alert")


def test_whether_the_bands_hold_is_counted(visit):
    here = visit()
    keep_one(here, 7)
    page = here.open("/kept")
    page.wait_for_selector("#calibration[data-drawn]")
    assert "have come" in page.locator("#calibration").inner_text()
    assert page.locator("#calibration .chart svg.main-svg").count() >= 3


def test_an_empty_store_says_so(visit):
    here = visit()
    none = {"forecasts": [], "total": 0, "unreadable": []}
    counts = {"forecasts": 0, "bars": 0, "by_horizon": [], "pit": [0] * 10, "reason": "none yet"}
    here.page.route("**/forecasts?*", lambda route: route.fulfill(json=none))
    here.page.route("**/forecasts/calibration", lambda route: route.fulfill(json=counts))
    page = here.open("/kept")
    page.wait_for_selector("text=Nothing kept yet")
    page.wait_for_selector("text=Nothing to count yet")
