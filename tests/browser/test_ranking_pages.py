"""Universe and runs in a browser: ranked, sorted, filtered, explained, compared."""

from __future__ import annotations

from kronos_qlib.webui.schemas import Contribution, Why

HOSTILE = "<img src=x onerror=alert(1)>"


def column(page, place: int) -> list[str]:
    return page.locator(f"#universe tbody tr > :nth-child({place})").all_inner_texts()


def test_names_are_ranked_sorted_and_filtered(visit):
    here = visit()
    page = here.open("/universe")
    page.wait_for_selector("#universe tbody tr")
    assert column(page, 1) == [str(rank) for rank in range(1, 13)]
    first = column(page, 2)[0]
    page.click("th button:text-is('Score')")  # numbers: the highest first, then the lowest
    page.click("th button:text-is('Score')")
    assert column(page, 2)[-1] == first
    assert page.get_attribute("th:has-text('Score')", "aria-sort") == "ascending"
    assert page.locator("#universe .spark").count() == 12
    page.fill("#filter", first.lower())
    assert column(page, 2) == [first]
    assert "1 name of 12" in page.locator("#universe [role=status]").inner_text()
    page.fill("#filter", "zzz")
    assert page.locator("text=Nothing matches").is_visible()


def test_a_name_opens_its_forecast(visit):
    here = visit()
    page = here.open("/universe")
    page.wait_for_selector("#universe tbody tr")
    name = column(page, 2)[0]
    page.click("#universe tbody a >> nth=0")
    page.wait_for_selector("#forecast[data-drawn]")
    assert page.locator("#forecast-title").inner_text().startswith(name)


def test_why_a_rank_is_told_in_words_and_bars(visit):
    here = visit()
    page = here.page
    parts = [
        Contribution(
            model="LGBModel",
            feature=feature,
            kind="column",
            percentile=percentile,
            contribution=contribution,
            left_out=left_out,
        )
        for feature, percentile, contribution, left_out in [
            (HOSTILE, 0.9, 0.004, -0.0035),
            ("ROC5", None, -0.002, None),
        ]
    ]
    why = Why(
        run="good",
        run_id="r",
        instrument="A",
        day="2021-06-23",
        method="SHAP",
        score=0.02,
        rank=1,
        names=12,
        contributions=parts,
        words=["It stands high mostly for one input."],
    )
    page.route("**/why?*", lambda route: route.fulfill(json=why.model_dump()))
    here.open("/universe")
    page.click("#universe tbody button >> nth=0")
    page.wait_for_selector("dialog .effects")
    said = page.locator("dialog#why").inner_text()
    assert "mostly for one input" in said and HOSTILE in said and "+0.0040" in said
    assert page.locator("dialog img").count() == 0
    page.keyboard.press("Escape")
    assert not page.locator("dialog#why").is_visible()


def test_runs_are_compared(visit):
    here = visit()
    page = here.open("/runs")
    page.wait_for_selector("#runs tbody tr")
    assert page.is_disabled("text=Compare")
    for box in page.locator("#runs tbody input").all():
        box.check()
    page.click("button:text-is('Compare')")
    page.wait_for_selector("#comparison[data-drawn]")
    # One name holds a comma; the address names both, so that a reload compares them again.
    names = page.locator("#comparison tbody th >> nth=1").inner_text(), page.url
    assert "blind, seed 2" in page.locator("#comparison").inner_text(), names
    page.reload()
    page.wait_for_selector("#comparison[data-drawn]")
    assert page.locator("#runs tbody input:checked").count() == 2
    excess = page.locator("#comparison tbody td:has-text('[')").all_inner_texts()
    assert any("%" in cell for cell in excess), "an excess return has its interval"
    titles = page.locator("#comparison h3").all_inner_texts()
    assert titles[:3] == ["Equity", "Drawdown", "Rank IC"]
    assert "Is the Rank IC different?" in titles and "What a blend adds" in titles
    assert page.evaluate("document.activeElement.id") == "side"


def test_the_newest_day_is_scored_now_and_a_reload_does_not_lose_it(visit):
    here = visit()
    page = here.open("/universe")
    page.wait_for_selector("#universe tbody tr")
    page.wait_for_function("() => document.querySelectorAll('#run option').length === 3")
    options = page.locator("#run option").all_inner_texts()
    good = next(text for text in options if text.startswith("good"))
    page.select_option("#run", label=good)
    page.wait_for_selector("#day:has-text('good, 2021-06-23')")
    page.click("#fresh")
    page.wait_for_selector("#jobs [data-job]")
    page.reload()
    page.wait_for_selector("#day:has-text('scored now')")
    assert "good" in page.locator("#day").inner_text()
    assert page.locator("#run option:checked").inner_text() == good
    assert column(page, 1) == [str(rank) for rank in range(1, 13)]
    said = page.locator("#universe .note").inner_text()
    assert "The model says a score alone" in said
    # A model that is no sum of inputs says so in place of its reasons.
    here.expected.add(422)
    page.click("#universe tbody button >> nth=0")
    page.wait_for_selector("dialog .note")
    assert "alpha head" in page.locator("dialog .note").inner_text()
    page.click("dialog >> text=Close")
    # One that cannot be made again is an error in words, and the page goes on.
    page.select_option("#run", label=next(text for text in options if "blind" in text))
    page.wait_for_selector("#day:has-text('as the run predicted')")
    page.click("#fresh")
    page.wait_for_selector("#run[aria-invalid=true]")
    assert "this page never does" in page.locator("#run-error").inner_text()
    assert page.locator("#universe tbody tr").count() == 12


def test_nothing_ranked_and_no_runs_say_what_to_do(visit):
    here = visit()
    page = here.page
    here.expected.add(422)
    problem = {"title": "Unprocessable Content", "status": 422, "detail": "no run has finished"}
    wants_json = "application/json"

    def nothing(route):
        if route.request.headers.get("accept") != wants_json:
            route.continue_()
        elif "universe" in route.request.url:
            route.fulfill(status=422, json=problem)
        else:
            route.fulfill(json={"runs": [], "measures": {}, "reason": "no run has finished"})

    page.route("**/universe?*", nothing)
    page.route("**/runs", nothing)
    here.open("/universe")
    page.wait_for_selector("text=Nothing ranked yet")
    here.open("/runs")
    page.wait_for_selector("text=No runs yet")


def test_a_server_that_is_gone_is_told_in_words(visit):
    here = visit()
    page = here.page

    def gone(route):
        is_page = "text/html" in route.request.headers.get("accept", "")
        route.continue_() if is_page else route.abort()

    page.route("**/runs", gone)
    here.open("/runs")
    page.wait_for_selector("text=Is `kronos-qlib web` still running?")


def test_a_whole_market_is_shown_in_slices(visit):
    here = visit()
    page = here.page
    days = [str(day) for day in range(60)]
    row = {"percentile": 0.5, "sparkline": [0.1 * day for day in range(60)], "last_bar": None}
    row |= dict.fromkeys(("expected_return", "prob_up", "volatility", "shortfall_5", "age_days"))
    rows = [
        row | {"rank": place + 1, "instrument": f"SYM{place:05d}", "score": -place / 5000}
        for place in range(5000)
    ]
    universe = {"run": "r", "run_id": "r", "day": "2024-06-28", "fresh": False, "days": days}
    universe |= {"rows": rows, "notes": []}
    page.route("**/universe?*", lambda route: route.fulfill(json=universe))
    here.open("/universe")
    page.wait_for_selector("#universe tbody tr")
    assert page.locator("#universe tbody tr").count() == 100
    page.click("text=Show 100 more of 4,900")
    assert page.locator("#universe tbody tr").count() == 200
    page.click("th button:text-is('Instrument')")
    page.click("th button:text-is('Instrument')")
    assert column(page, 2)[0] == "SYM04999"
    # The head stays in sight while the box scrolls.
    scrolled = "document.querySelector('#universe .scroll').scrollTop"
    page.evaluate(f"{scrolled} = 2000")
    assert page.evaluate(scrolled) == 2000
    head = page.locator("#universe thead th >> nth=1").bounding_box()
    box = page.locator("#universe .scroll").bounding_box()
    assert box["y"] <= head["y"] <= box["y"] + 3
    page.fill("#filter", "sym00042")
    assert column(page, 2) == ["SYM00042"]
    assert here.overflow() == 0
