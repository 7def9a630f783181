"""The forecast page in a browser: asked by folder and by file, read, zoomed, cancelled, refused."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pandas as pd
import pytest

HOSTILE = '<img src=x onerror="alert(1)">'


def as_csv(bars: pd.DataFrame, symbol: str, rows: int = 150) -> bytes:
    one = bars[bars["symbol"] == symbol].head(rows)
    columns = ["date", "open", "high", "low", "close", "volume"]
    return one[columns].rename(columns={"date": "timestamp"}).to_csv(index=False).encode()


def upload(visit, name: str, content: bytes):
    page = visit.page
    page.check("input[value=file]", force=True)
    page.set_input_files("#file", {"name": name, "mimeType": "text/csv", "buffer": content})
    return page


def test_a_forecast_is_read_in_words_and_as_a_chart(visit):
    here = visit()
    page = here.open("/")
    assert page.locator("#nothing").is_visible()
    here.forecast()
    title = page.locator("#forecast-title").inner_text()
    assert title == f"{here.site.instruments[0]}, 5 bars after {here.site.seen_until}"
    assert "half of the 20 paths close between" in page.locator(".lead").inner_text()
    assert page.locator(".chart.tall svg.main-svg").count() > 0
    # What came is known here: five candles in its colour, and a judgement of this very window.
    page.wait_for_selector("#record table")
    assert "This very window" in page.locator("#record").inner_text()
    assert "BUY" not in page.locator("body").inner_text().upper().split()


def test_how_far_it_has_been_right_is_measured_beside_it(visit):
    here = visit(judges=True)
    here.open("/")
    page = here.forecast()
    page.wait_for_selector("#record caption:has-text('windows of')")
    words = page.locator("#record .verdict").inner_text()
    assert words.startswith("In the last 20 windows of this instrument the 90\u00a0% band held ")
    assert "of 100 closes." in words  # 20 windows of 5 bars
    # What flatters it is said: the calibration may have seen these windows.
    assert "up to which the calibration was fitted" in page.locator("#record").inner_text()
    assert "than that of historical volatility" in words or "as large as" in words
    rows = page.locator("#record table").last.locator("tbody th").all_inner_texts()
    assert sorted(rows) == ["Historical volatility", "Last price", "This model"]


def test_the_newest_bars_have_nothing_to_be_judged_by(visit):
    here = visit()
    here.open("/")
    page = here.forecast(date="")
    assert "This window cannot be judged yet" in page.locator("#record").inner_text()


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_file_is_forecast(visit, bars, ending):
    here = visit()
    here.open("/")
    table = bars[bars["symbol"] == here.site.instruments[1]].head(150).drop(columns="symbol")
    stream = io.BytesIO()
    table.to_parquet(stream) if ending == "parquet" else table.to_csv(stream, index=False)
    page = upload(here, f"mine.{ending}", stream.getvalue())
    assert page.locator("#drop-title").inner_text().startswith(f"mine.{ending}, ")
    here.settle()
    page.click("#go")
    here.drawn()
    assert "mine" in page.locator("#forecast-title").inner_text().lower()


def test_a_dropped_file_is_taken(visit, bars):
    here = visit()
    page = here.open("/")
    content = as_csv(bars, here.site.instruments[1]).decode()
    page.evaluate(
        """text => {
            const carried = new DataTransfer();
            carried.items.add(new File([text], "dropped.csv", { type: "text/csv" }));
            const over = new DragEvent("dragover", { dataTransfer: carried, bubbles: true });
            document.body.dispatchEvent(over);
            const drop = new DragEvent("drop", { dataTransfer: carried, bubbles: true });
            document.getElementById("drop").dispatchEvent(drop);
        }""",
        content,
    )
    assert page.locator("#drop-title").inner_text().startswith("dropped.csv")
    assert page.is_checked("input[value=file]")


def test_names_of_files_and_instruments_are_text(visit, bars):
    here = visit()
    here.open("/")
    page = upload(here, f"{HOSTILE}.csv", as_csv(bars, here.site.instruments[1]))
    assert HOSTILE in page.locator("#drop-title").inner_text()
    page.click("summary:text-is('How the file is read')")
    here.settle()
    page.click("#go")
    page.wait_for_selector("#forecast[data-drawn], #error .alert")
    # A column of names, one of them hostile.
    table = bars[bars["symbol"] == here.site.instruments[1]].head(150).assign(symbol=HOSTILE)
    page = upload(here, "names.csv", table.to_csv(index=False).encode())
    here.expected.add(422)
    page.click("#go")
    page.wait_for_selector("#forecast:not([aria-busy])")
    assert page.locator("main img").count() == 0
    assert page.locator("main [onerror]").count() == 0


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"timestamp,open,high,low,close\n2021-01-04,1,2,0.5,abc\n2021-01-05,1,2,0.5,1\n", "close"),
        (b"a,b\n1,2\n3,4\n", "column"),
        (b"\x00\x01\x02\xff\xfe" * 40, "utf-8"),
        (b"", "file"),
    ],
    ids=["a word among prices", "other columns", "bytes", "nothing"],
)
def test_a_file_that_cannot_be_read_is_refused_in_words(visit, content, word):
    here = visit()
    here.open("/")
    here.expected |= {400, 415, 422}
    page = upload(here, "dirty.csv", content)
    here.settle()
    page.click("#go")
    page.wait_for_selector("#error .alert")
    said = page.locator("#error .alert").inner_text() + page.locator("#file-error").inner_text()
    assert word in said.lower()
    assert "Traceback" not in said
    assert page.locator("#forecast").get_attribute("aria-busy") is None


def test_an_error_stands_beside_its_input_and_takes_the_focus(visit):
    here = visit()
    page = here.open("/")
    here.expected.add(422)
    page.click("#go")  # nothing is named: told without asking the server
    assert "Name an instrument" in page.locator("#instrument-error").inner_text()
    assert page.evaluate("document.activeElement.id") == "instrument"
    page.fill("#instrument", "NOBODY")
    here.settle()
    page.click("#go")
    page.wait_for_selector("#instrument[aria-invalid=true]")
    assert "NOBODY" in page.locator("#instrument-error").inner_text()
    assert page.get_attribute("#instrument", "aria-describedby").split()[0] == "instrument-error"
    page.fill("#instrument", here.site.instruments[0])
    page.fill("#horizon", "0")
    page.click("#go")
    assert "Between 1 and 512" in page.locator("#horizon-error").inner_text()
    assert page.locator("#instrument-error").inner_text() == ""
    page.fill("#horizon", "5")
    page.fill("#date", "1999-01-04")
    page.click("#go")
    assert page.locator("#date-error").inner_text().startswith("Between 2020-01-01 and ")
    page.fill("#date", "")
    page.focus("#date")
    page.keyboard.type("02")  # a month alone is no date, and not the newest one either
    page.click("#go")
    assert "A whole date" in page.locator("#date-error").inner_text()
    page.fill("#date", "")
    # A setting that is folded away is unfolded where it is wrong.
    page.click("summary:text-is('Sampling')")
    page.fill("#top_p", "7")
    page.click("summary:text-is('Sampling')")
    page.click("#go")
    assert page.locator("#top_p-error").is_visible()


def test_a_file_that_is_too_large_is_not_even_sent(visit):
    here = visit()
    page = here.open("/")
    page.check("input[value=file]", force=True)
    page.evaluate(
        """() => {
            const carried = new DataTransfer();
            carried.items.add(new File([new Uint8Array(21 * 1024 ** 2)], "big.csv"));
            const drop = new DragEvent("drop", { dataTransfer: carried, bubbles: true });
            document.body.dispatchEvent(drop);
        }"""
    )
    page.click("#go")
    assert "20.0 MB are the most" in page.locator("#file-error").inner_text()
    assert not any("predict" in url for url in here.requests)


def test_a_full_queue_says_when_to_come_back(visit):
    here = visit()
    page = here.open("/")
    here.expected.add(429)
    problem = {"title": "Too Many Requests", "status": 429, "detail": "16 forecasts wait already"}
    head = {"Retry-After": "7", "Content-Type": "application/problem+json"}
    page.route(
        "**/predict", lambda r: r.fulfill(status=429, headers=head, body=json.dumps(problem))
    )
    page.fill("#instrument", here.site.instruments[0])
    page.click("#go")
    page.wait_for_selector("#error .alert")
    said = page.locator("#error").inner_text()
    assert "16 forecasts wait already" in said and "Try again in 7 s" in said


def shown(page) -> list[float]:
    return page.evaluate("document.querySelector('.chart.tall').layout.xaxis.range")


def moved(page, act) -> list[float]:
    """The range that is shown after `act` has changed it."""
    before = shown(page)
    act()
    page.wait_for_function(
        """before => {
            const now = document.querySelector(".chart.tall").layout.xaxis.range;
            return now.some((bound, place) => Math.abs(bound - before[place]) > 1e-6);
        }""",
        arg=before,
    )
    return shown(page)


def test_zoom_pan_ranges_and_all(visit):
    here = visit()
    here.open("/")
    page = here.forecast()
    low, high = shown(page)
    inside = moved(page, lambda: page.click("button[aria-label='Zoom in']"))
    assert inside[1] - inside[0] == pytest.approx(0.7 * (high - low))
    earlier = moved(page, lambda: page.click("button[aria-label='Earlier']"))
    assert earlier[0] < inside[0]
    assert earlier[1] - earlier[0] == pytest.approx(inside[1] - inside[0])
    newest = moved(page, lambda: page.click("button:text-is('20 bars')"))
    assert newest[1] - newest[0] == pytest.approx(20 + 5)
    box = page.locator(".chart.tall").bounding_box()

    def drag():
        page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 100)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 110, steps=4)
        page.mouse.up()

    dragged = moved(page, drag)
    assert newest[0] < dragged[0] < dragged[1] < newest[1]
    whole = moved(page, lambda: page.click("button:text-is('All')"))
    assert whole[0] == pytest.approx(-0.5)


def test_bars_stand_side_by_side_whatever_the_weekend(visit):
    here = visit()
    here.open("/")
    page = here.forecast()
    places = page.evaluate("document.querySelector('.chart.tall').data[0].x")
    assert places == list(range(len(places)))


def test_up_and_down_are_told_by_filling_not_by_colour(visit):
    here = visit()
    here.open("/")
    page = here.forecast()
    candles = page.evaluate(
        """document.querySelector('.chart.tall').data.filter(one => one.type === 'candlestick')
            .map(one => [one.name, one.increasing, one.decreasing])"""
    )
    assert [name for name, _, _ in candles] == ["seen", "what came"]
    for _, up, down in candles:
        assert up["line"]["color"] == down["line"]["color"] == down["fillcolor"]
        assert up["fillcolor"] != down["fillcolor"]
    assert candles[0][1]["line"]["color"] != candles[1][1]["line"]["color"]


def test_log_scale_and_single_paths(visit):
    here = visit()
    here.open("/")
    page = here.forecast()
    page.click("button:text-is('Log scale')")
    page.click("button:text-is('Single paths')")
    page.wait_for_function(
        "() => document.querySelector('.chart.tall').layout.yaxis.type === 'log'"
    )
    names = page.evaluate("document.querySelector('.chart.tall').data.map(one => one.name)")
    assert "single paths" in names
    assert page.get_attribute("button:text-is('Log scale')", "aria-pressed") == "true"


def test_the_bar_under_the_pointer_is_read_with_units(visit):
    here = visit()
    here.open("/")
    page = here.forecast()
    box = page.locator(".chart.tall").bounding_box()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 100)
    page.wait_for_selector(".readout >> text=volume")
    said = page.locator(".readout").inner_text()
    assert all(word in said for word in ("open", "high", "low", "close", "%"))
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] - 60)
    page.wait_for_selector(".readout >> text=units of the bars")


def test_the_chart_is_read_with_the_keyboard(visit):
    here = visit()
    here.open("/")
    page = here.forecast()
    page.focus(".chart.tall")
    page.keyboard.press("ArrowRight")
    said = page.locator(".readout").inner_text()
    assert all(word in said for word in ("median", "50 %", "80 %", "90 %", "up", "came"))
    page.keyboard.press("ArrowLeft")
    assert here.site.seen_until in page.locator(".readout").inner_text()
    low, high = shown(page)
    nearer = moved(page, lambda: page.keyboard.press("+"))
    assert nearer[1] - nearer[0] < high - low
    page.keyboard.press("Escape")
    assert "units of the bars" in page.locator(".readout").inner_text()


def saved(page, label: str) -> Path:
    with page.expect_download() as started:
        page.click(f"button[aria-label='{label}']")
    return started.value.path()


def test_the_chart_and_the_numbers_are_saved(visit):
    here = visit()
    here.open("/")
    page = here.forecast()
    assert saved(page, "Save the chart as PNG").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.reader(saved(page, "Save the numbers as CSV").read_text().splitlines()))
    assert rows[0][0] == "timestamp" and "close_0.05" in rows[0] and "realised_close" in rows[0]
    assert len(rows) == 1 + 5 and all(len(row) == len(rows[0]) for row in rows)
    whole = json.loads(saved(page, "Save the forecast as JSON").read_text())
    place = rows[0].index("close_0.05")
    lows = whole["quantiles"]["close"]["0.05"]
    assert [float(row[place]) for row in rows[1:]] == pytest.approx(lows)


def test_progress_is_shown_and_cancelling_works_while_a_second_one_waits(visit):
    here = visit()
    page = here.open("/")
    page.fill("#instrument", here.site.instruments[0])
    here.settle(paths="1000", horizon="60", lookback="40")
    page.click("#go")
    page.wait_for_selector("#jobs progress[max]")
    # Loaded again, the page takes it up; another one sees what keeps the model busy.
    page.reload()
    page.wait_for_selector("#jobs progress[max]")
    assert here.site.instruments[0] in page.locator("#jobs").inner_text()
    other = visit()
    other.open("/").wait_for_selector("#jobs >> text=Forecast of")
    page.fill("#instrument", here.site.instruments[1])
    here.settle()
    page.click("#go")
    page.wait_for_selector("#jobs [data-job] >> nth=1")
    page.click("#jobs .job >> nth=0 >> text=Cancel")
    # The second one was asked for by this page alone, and comes after it is loaded again, too.
    page.reload()
    here.drawn()
    assert page.locator("#forecast-title").inner_text().startswith(here.site.instruments[1])
    assert page.locator("#jobs .job").count() == 0
    assert page.locator("#error").inner_text() == ""


def test_a_checkpoint_of_the_owner_is_loaded_and_used(visit):
    here = visit()
    page = here.open("/")
    page.wait_for_function("() => document.querySelectorAll('#checkpoint option').length > 1")
    page.select_option("#checkpoint", "local/tiny")
    assert "on this machine" in page.locator("#checkpoint-hint").inner_text()
    page.click("#load")
    page.wait_for_selector("#checkpoint-hint:has-text('loaded on')")
    page.check("input[name=calibration][value=none]", force=True)
    here.forecast(lookback="30")
    assert "local/tiny" in page.locator(".meta").inner_text()
    assert "as drawn" in page.locator(".meta").inner_text()


def test_an_address_opens_its_forecast_again(visit):
    here = visit()
    here.open("/")
    page = here.forecast()
    title = page.locator("#forecast-title").inner_text()
    assert "?forecast=" in page.url
    page.reload()
    page.wait_for_selector("#forecast[data-drawn]")
    assert page.locator("#forecast-title").inner_text() == title


def test_without_a_folder_the_page_says_what_to_do(visit):
    here = visit()
    here.page.route(
        "**/instruments*",
        lambda route: route.fulfill(
            json={
                "folder": None,
                "freq": None,
                "first": None,
                "last": None,
                "total": 0,
                "instruments": [],
            }
        ),
    )
    page = here.open("/")
    page.wait_for_function("() => document.querySelector('input[value=file]').checked")
    page.check("input[value=folder]", force=True)
    assert "without --data" in page.locator("#folder-state").inner_text()


def test_a_new_forecast_does_not_wait_for_the_judgement_of_the_last(visit):
    here = visit()
    page = here.page
    job = {"job": "0" * 20, "kind": "track_record", "label": "track record", "state": "running"}
    job |= {"about": {}}
    job |= {"progress": 0.1, "eta": None, "position": None, "status_url": f"/jobs/{'0' * 20}"}
    job |= {"result_url": None, "result": None, "error": None}
    stopped = []

    def answer(route):
        if route.request.method == "DELETE":
            stopped.append(route.request.url)
        state = "cancelled" if stopped else "running"
        route.fulfill(json=job | {"state": state})

    page.route("**/track-record", lambda route: route.fulfill(status=202, json=job))
    page.route(f"**/jobs/{'0' * 20}", answer)
    here.open("/")
    here.forecast(seed="31")  # one that no other test has judged
    page.wait_for_selector("#record progress")
    here.forecast(here.site.instruments[1], seed="31")
    assert len(stopped) == 1


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        ("percent(0.0312, 1, true)", "+3.1\u00a0%"),
        ("percent(-0.0312)", "\u22123.1\u00a0%"),
        ("percent(-0.00001)", "0.0\u00a0%"),
        ("percent(null)", "\u2013"),
        ("percent(NaN)", "\u2013"),
        ("span(-0.031, 0.032)", "\u22123.1 to +3.2\u00a0%"),
        ("price(1234.5)", "1,234.50"),
        ("price(0.00001234)", "0.00001234"),
        ("price(9.876, 1000)", "9.88"),
        ("compact(1234567)", "1.23M"),
        ("millions(808320)", "0.81\u00a0M"),
        ("millions(102310592)", "102.3\u00a0M"),
        ("coin(10, 20)", 1),
        ("coin(20, 20).toExponential(4)", "1.9073e-6"),
        ("coin(15, 20).toFixed(6)", "0.041389"),  # scipy.stats.binomtest(15, 20).pvalue
        ("coin(5, 20).toFixed(6)", "0.041389"),
        ("time('2024-06-18T09:35:00')", "2024-06-18 09:35"),
        ("sentence('no bar came')", "No bar came."),
        ("seconds(200)", "about 3 minutes"),
    ],
)
def test_numbers_as_people_read_them(format_of, call, shown):
    assert format_of(call) == shown


@pytest.fixture(scope="module")
def format_of(browser, site):
    """Evaluates a call of a function of static/format.js."""
    page = browser.new_page()
    page.goto(site.address)
    module = page.get_attribute("script[type=module]", "src").replace("shell.js", "format.js")
    names = "percent, span, price, compact, millions, coin, time, sentence, seconds"
    yield lambda call: page.evaluate(
        f"async path => {{ const {{ {names} }} = await import(path); return {call}; }}", module
    )
    page.close()
