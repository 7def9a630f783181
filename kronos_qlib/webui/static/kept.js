// Every kept forecast; two side by side; and whether their bands hold.

import { ApiProblem, call, get } from "./api.js";
import { axis, colour, draw, faint, layout, lines } from "./chart.js";
import { at, caption, confirmed, empty, h, put, scrolling } from "./dom.js";
import { NONE, count, fixed, moment, percent, price, span, time } from "./format.js";
import { reconciled } from "./reconcile.js";
import { clearProblems, showProblem } from "./problems.js";
import { sortable } from "./table.js";

const PAGE = 100;
const chosen = new Map();
let kept = [];
let total = 0;
let words = "";

const say = (text) => (at("said").textContent = text);

function stand(row) {
  if (row.realised === 0) return "none yet";
  return row.realised === row.horizon ? `all ${row.horizon}` : `${row.realised} of ${row.horizon}`;
}

function columns(tell) {
  const tick = (row) =>
    h("input", {
      type: "checkbox",
      "aria-label": `Choose the forecast of ${row.instrument} after ${time(row.last_timestamp)}`,
      checked: chosen.has(row.id),
      onchange: (event) => {
        if (event.target.checked) chosen.set(row.id, row);
        else chosen.delete(row.id);
        tell();
      },
    });
  return [
    { key: "tick", title: "", label: "Choose", show: tick },
    {
      key: "instrument",
      title: "Instrument",
      text: true,
      head: true,
      of: (row) => row.instrument,
      show: (row) => h("a", { href: `/kept/${row.id}` }, row.instrument),
    },
    {
      key: "last",
      title: "Last bar seen",
      of: (row) => row.last_timestamp,
      show: (row) => time(row.last_timestamp),
    },
    { key: "until", title: "Until", of: (row) => row.until, show: (row) => time(row.until) },
    {
      key: "checkpoint",
      title: "Weights",
      text: true,
      of: (row) => row.checkpoint,
      show: (row) => `${row.checkpoint}, ${row.calibrated ? "calibrated" : "as drawn"}`,
    },
    { key: "paths", title: "Paths", of: (row) => row.paths, show: (row) => row.paths },
    {
      key: "expected",
      title: "Mean return",
      of: (row) => row.last_return,
      show: (row) => percent(row.last_return, 1, true),
    },
    {
      key: "realised",
      title: "Bars that came",
      of: (row) => row.realised / row.horizon,
      show: stand,
    },
    {
      key: "crps",
      title: "CRPS, % of price",
      hint: "error of the whole distribution, once all bars are known",
      of: (row) => row.crps,
      show: (row) => (row.crps === null ? NONE : fixed(100 * row.crps, 2)),
    },
    { key: "created", title: "Made", of: (row) => row.created, show: (row) => moment(row.created) },
    {
      key: "act",
      title: "",
      label: "Actions",
      show: (row) =>
        h(
          "span",
          { class: "buttons end-row" },
          row.realised < row.horizon
            ? h(
                "button",
                {
                  type: "button",
                  class: "plain small",
                  "aria-label": `Reconcile the forecast of ${row.instrument}`,
                  onclick: (event) => reconcile(row, event.target),
                },
                "Reconcile",
              )
            : null,
          h(
            "button",
            {
              type: "button",
              class: "plain small",
              "aria-label": `Delete the forecast of ${row.instrument} after ${time(row.last_timestamp)}`,
              onclick: () => remove(row),
            },
            "Delete",
          ),
        ),
    },
  ];
}

async function reconcile(row, button) {
  clearProblems();
  button.disabled = true;
  try {
    const forecast = await reconciled(row);
    if (!forecast) return;
    const known = forecast.realised?.length ?? 0;
    say(
      known > row.realised
        ? `${row.instrument}: ${known} of ${row.horizon} bars have come.`
        : `${row.instrument}: no further bar has come.`,
    );
    await Promise.all([read(), readCalibration()]);
  } catch (error) {
    showProblem(error);
  } finally {
    button.disabled = false;
  }
}

async function remove(row) {
  if (
    !(await confirmed(
      "Delete this forecast?",
      `The forecast of ${row.instrument} after ${time(row.last_timestamp)} is removed from the store; that cannot be undone.`,
    ))
  )
    return;
  clearProblems();
  try {
    await call(`/forecasts/${row.id}`, { method: "DELETE" });
    chosen.delete(row.id);
    say(`The forecast of ${row.instrument} is deleted.`);
    await Promise.all([read(), readCalibration()]);
  } catch (error) {
    showProblem(error);
  }
}

function show() {
  const place = at("kept");
  if (!total && !words) {
    put(
      place,
      empty(
        "Nothing kept yet",
        "Forecasts that are kept appear here.",
        h("p", {}, h("a", { href: "/" }, "Make one")),
      ),
    );
    return;
  }
  const compare = h(
    "button",
    { type: "button", class: "primary", disabled: true, onclick: readTwo },
    "Compare two",
  );
  const said = h("span", { class: "quiet", role: "status" });
  const tell = () => {
    compare.disabled = chosen.size !== 2;
    said.textContent =
      chosen.size === 0
        ? ""
        : chosen.size > 2
          ? `${chosen.size} chosen; two at a time are compared`
          : `${chosen.size} chosen`;
  };
  const filter = h("input", {
    id: "filter",
    type: "search",
    autocomplete: "off",
    spellcheck: "false",
    value: words,
    maxlength: 80,
  });
  let typing = 0;
  filter.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(async () => {
      words = filter.value.trim();
      await read();
      at("filter")?.focus();
      at("filter")?.setSelectionRange(words.length, words.length);
    }, 200);
  });
  const table = sortable(columns(tell), kept, {
    label: "Kept forecasts",
    sort: { key: "created", down: true },
    most: PAGE,
  });
  const rest = total - kept.length;
  put(
    place,
    h(
      "div",
      { class: "above" },
      h("div", { class: "field" }, h("label", { for: "filter" }, "Filter by instrument"), filter),
      h("div", { class: "buttons" }, said, compare),
    ),
    table.node,
    rest > 0
      ? h(
          "p",
          { class: "more" },
          h(
            "button",
            { type: "button", class: "plain", onclick: () => read(kept.length) },
            `Read ${Math.min(rest, PAGE)} older ones of ${rest.toLocaleString("en-US")}`,
          ),
        )
      : null,
  );
  tell();
}

async function read(offset = 0) {
  try {
    const answer = await get(
      `/forecasts?${new URLSearchParams({ q: words, offset, limit: PAGE })}`,
    );
    kept = offset ? [...kept, ...answer.forecasts] : answer.forecasts;
    total = answer.total;
    show();
    if (answer.unreadable.length)
      at("kept").prepend(
        h(
          "p",
          { class: "note" },
          `In the store, and no forecasts: ${answer.unreadable.join(", ")}.`,
        ),
      );
  } catch (error) {
    if (at("kept").querySelector(".skeleton")) put(at("kept"));
    showProblem(error);
  }
}

/** Both medians and 90 % bands over the bars of either. */
function overlay(pair) {
  return (width) => {
    const stamps = [
      ...new Set(pair.flatMap((one) => [one.last_timestamp, ...one.timestamps])),
    ].sort();
    const traces = pair.flatMap((one, place) => {
      const tone = colour(place ? "fourth" : "forecast");
      const x = [one.last_timestamp, ...one.timestamps].map(time);
      const edge = {
        x,
        mode: "lines",
        line: { width: 0, color: tone },
        hoverinfo: "skip",
        showlegend: false,
      };
      const fan = (key) => [one.last_close, ...one.quantiles.close[key]];
      const name = place ? "second" : "first";
      return [
        { ...edge, y: fan("0.05") },
        { ...edge, y: fan("0.95"), fill: "tonexty", fillcolor: faint(tone, 0.2) },
        {
          x,
          y: fan("0.5"),
          mode: "lines",
          name: `${name}: median, 90 % band`,
          line: { color: tone, width: 2, dash: place ? "dash" : "solid" },
          hovertemplate: `%{y:.6~g}<extra>${name}, median</extra>`,
        },
      ];
    });
    const came = pair
      .map((one) => one.realised ?? [])
      .sort((one, other) => other.length - one.length)[0];
    if (came.length)
      traces.push({
        x: came.map((bar) => time(bar.timestamp)),
        y: came.map((bar) => bar.close),
        mode: "lines+markers",
        name: "close that came",
        line: { color: colour("realised"), width: 2 },
        marker: { size: 6 },
        hovertemplate: "%{y:.6~g}<extra>came</extra>",
      });
    return [
      traces,
      layout({
        hovermode: "x unified",
        showlegend: true,
        legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, traceorder: "normal" },
        xaxis: axis({
          type: "category",
          categoryorder: "array",
          categoryarray: stamps.map(time),
          nticks: Math.max(2, Math.floor(width / 110)),
          tickangle: 0,
          showgrid: false,
        }),
        yaxis: axis({ title: { text: "close, units of the bars" } }),
      }),
    ];
  };
}

async function readTwo() {
  clearProblems();
  const place = at("comparison");
  try {
    const pair = await Promise.all([...chosen.keys()].map((id) => get(`/forecasts/${id}`)));
    const [one, other] = pair;
    const isSame = one.instrument === other.instrument;
    const end = (forecast, key) => forecast.quantiles.close[key].at(-1);
    const change = (forecast, key) =>
      percent(end(forecast, key) / forecast.last_close - 1, 1, true);
    const score = (forecast) =>
      forecast.track_record.this_window?.find((row) => row.method === "kronos");
    const rows = [
      ["Instrument", (forecast) => forecast.instrument],
      ["Last bar seen", (forecast) => time(forecast.last_timestamp)],
      ["Bars ahead", (forecast) => String(forecast.timestamps.length)],
      [
        "Weights",
        (forecast) => `${forecast.checkpoint.name} (${forecast.checkpoint.digest.slice(0, 8)})`,
      ],
      ["Spread", (forecast) => (forecast.calibrated ? "calibrated" : "as drawn")],
      ["Paths", (forecast) => String(forecast.settings.paths)],
      [
        "Temperature, top-p, top-k",
        (forecast) =>
          `${forecast.settings.temperature}, ${forecast.settings.top_p}, ${forecast.settings.top_k}`,
      ],
      ["Seed", (forecast) => String(forecast.settings.seed)],
      ["Last close seen", (forecast) => price(forecast.last_close)],
      ["Median return", (forecast) => change(forecast, "0.5")],
      [
        "90 % band at the last bar",
        (forecast) =>
          span(
            end(forecast, "0.05") / forecast.last_close - 1,
            end(forecast, "0.95") / forecast.last_close - 1,
          ),
      ],
      [
        "Bars that came",
        (forecast) => `${forecast.realised?.length ?? 0} of ${forecast.timestamps.length}`,
      ],
      [
        "CRPS, % of price",
        (forecast) => (score(forecast) ? fixed(100 * score(forecast).crps, 2) : NONE),
      ],
    ];
    const table = h(
      "table",
      {},
      caption("Rows that differ are marked ≠."),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("th", { class: "text", scope: "col" }, "What"),
          ["First", "Second"].map((word) => h("th", { class: "text", scope: "col" }, word)),
          h("th", { scope: "col" }, h("span", { class: "visually-hidden" }, "Differs")),
        ),
      ),
      h(
        "tbody",
        {},
        rows.map(([name, of]) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, name),
            pair.map((forecast) => h("td", { class: "words" }, of(forecast))),
            h("td", {}, of(one) === of(other) ? "" : "≠"),
          ),
        ),
      ),
    );
    const charts = isSame
      ? [
          h("div", {
            class: "chart low",
            role: "img",
            "aria-label": "Both forecasts: median and 90 % band",
          }),
        ]
      : pair.map((forecast) =>
          h("div", {
            class: "chart low",
            role: "img",
            "aria-label": `Forecast of ${forecast.instrument}: median and 90 % band`,
          }),
        );
    put(
      place,
      h(
        "section",
        { class: "panel" },
        h("h2", { id: "two", tabindex: "-1" }, "Two forecasts"),
        isSame
          ? charts
          : h(
              "div",
              { class: "split" },
              charts.map((chart, index) =>
                h("div", {}, h("h3", {}, pair[index].instrument), chart),
              ),
            ),
        scrolling(table, "Two forecasts"),
      ),
    );
    at("two").focus({ preventScroll: true });
    place.scrollIntoView({ block: "start" });
    await Promise.all(
      charts.map((chart, index) => draw(chart, isSame ? overlay(pair) : overlay([pair[index]]))),
    );
    place.dataset.drawn = "two";
  } catch (error) {
    showProblem(error);
  }
}

function pitChart(counts) {
  return () => {
    const all = counts.reduce((sum, value) => sum + value, 0);
    const edges = counts.map(
      (_, place) =>
        `${fixed(place / counts.length, 1)} to ${fixed((place + 1) / counts.length, 1)}`,
    );
    const even = all / counts.length;
    const slack = 1.96 * Math.sqrt((all / counts.length) * (1 - 1 / counts.length));
    return [
      [
        {
          type: "bar",
          x: counts.map((_, place) => (place + 0.5) / counts.length),
          y: counts,
          width: 0.9 / counts.length,
          marker: { color: colour("forecast") },
          customdata: edges,
          hovertemplate: "%{y} bars, PIT %{customdata}<extra></extra>",
        },
      ],
      layout({
        shapes: [
          {
            type: "rect",
            xref: "paper",
            x0: 0,
            x1: 1,
            y0: Math.max(0, even - slack),
            y1: even + slack,
            fillcolor: faint(colour("quiet"), 0.18),
            line: { width: 0 },
            layer: "below",
          },
          {
            type: "line",
            xref: "paper",
            x0: 0,
            x1: 1,
            y0: even,
            y1: even,
            line: { color: colour("quiet"), dash: "dot", width: 1.5 },
          },
        ],
        xaxis: axis({
          title: { text: "place of what came in the distribution" },
          range: [0, 1],
          showgrid: false,
          nticks: 6,
        }),
        yaxis: axis({ title: { text: "bars" }, rangemode: "tozero" }),
      }),
    ];
  };
}

function coverageChart(rows) {
  return () => {
    const levels = Object.keys(rows[0].coverage).sort();
    const marks = ["circle", "square", "diamond"];
    const tones = ["forecast", "third", "fourth"].map(colour);
    const x = rows.map((row) => row.bar);
    return [
      levels.map((level, place) => ({
        x,
        y: rows.map((row) => row.coverage[level]),
        name: `${fixed(100 * level, 0)} % band`,
        mode: "lines+markers",
        line: { color: tones[place], width: 2 },
        marker: { symbol: marks[place], size: 7 },
        customdata: rows.map((row) => row.forecasts),
        hovertemplate: `%{y:.0%} of %{customdata} closes<extra>${fixed(100 * level, 0)} % band</extra>`,
      })),
      layout({
        hovermode: "x unified",
        showlegend: true,
        legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
        shapes: levels.map((level, place) => ({
          type: "line",
          xref: "paper",
          x0: 0,
          x1: 1,
          y0: Number(level),
          y1: Number(level),
          line: { color: tones[place], dash: "dot", width: 1 },
        })),
        xaxis: axis({
          title: { text: "bars ahead" },
          dtick: rows.length > 12 ? undefined : 1,
          showgrid: false,
        }),
        yaxis: axis({
          title: { text: "closes inside the band" },
          tickformat: ".0%",
          range: [0, 1.04],
        }),
      }),
    ];
  };
}

async function readCalibration() {
  const place = at("calibration");
  try {
    const found = await get("/forecasts/calibration");
    if (!found.forecasts || !found.by_horizon.length) {
      put(
        place,
        empty("Nothing to count yet", found.reason ?? "No kept forecast has a bar that came."),
      );
      return;
    }
    const chart = (label) => h("div", { class: "chart low", role: "img", "aria-label": label });
    const [coverage, pit, crps] = [
      chart("Share of closes inside each band, by bars ahead"),
      chart("Histogram of the probability integral transform"),
      chart("CRPS by bars ahead"),
    ];
    const panel = (title, hint, node) =>
      h("section", { class: "panel" }, h("h3", {}, title), h("p", { class: "hint" }, hint), node);
    put(
      place,
      h(
        "p",
        { class: "quiet" },
        `${count(found.bars, "bar")} of ${count(found.forecasts, "forecast")} have come. Bars of one forecast, and forecasts of one day, move together: ${found.forecasts < 30 ? "so few say little" : "they count for fewer than they are"}.`,
      ),
      h(
        "div",
        { class: "split three" },
        panel("Coverage", "Dotted: what each band promises.", coverage),
        panel(
          "PIT",
          "Flat is calibrated; a hump is a spread too wide, a bowl too narrow. Grey: what chance allows (95 %) if bars were independent.",
          pit,
        ),
        panel("Error", "CRPS by bars ahead; lower is better.", crps),
      ),
    );
    await Promise.all([
      draw(coverage, coverageChart(found.by_horizon)),
      draw(pit, pitChart(found.pit)),
      draw(
        crps,
        lines(
          [{ name: "CRPS", values: found.by_horizon.map((row) => 100 * row.crps) }],
          found.by_horizon.map((row) => String(row.bar)),
          {
            yTitle: "CRPS, % of price",
            xTitle: "bars ahead",
            format: ".2f",
            marks: true,
            fromZero: true,
          },
        ),
      ),
    ]);
    place.dataset.drawn = "yes";
  } catch (error) {
    if (!(error instanceof ApiProblem)) throw error;
    put(place, h("p", { class: "note" }, error.message));
  }
}

read();
readCalibration();
