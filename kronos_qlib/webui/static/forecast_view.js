// A forecast, wherever it is shown: in words, as a chart, as numbers, and how far it can be believed.

import { ApiProblem, call } from "./api.js";
import { draw, lines } from "./chart.js";
import { caption, download, fileName, h, put, scrolling, svg } from "./dom.js";
import { ForecastChart, csv, figures } from "./forecast_chart.js";
import {
  NONE,
  coin,
  count,
  fixed,
  moment,
  percent,
  price,
  sentence,
  span,
  time,
} from "./format.js";
import { answered, follow, running } from "./jobs.js";

const METHODS = {
  kronos: "This model",
  last_price: "Last price",
  historical_volatility: "Historical volatility",
};
const RANGES = [
  ["20 bars", 20],
  ["60 bars", 60],
  ["120 bars", 120],
  ["All", 0],
];
const swatch = (...children) =>
  svg("svg", { viewBox: "0 0 22 14", "aria-hidden": "true" }, children);

function lead(forecast) {
  const { close } = forecast.quantiles;
  const end = forecast.timestamps.length - 1;
  const at = (key) => price(close[key][end], forecast.last_close);
  return `By ${time(forecast.timestamps[end])}, half of the ${count(forecast.settings.paths, "path")} close between ${at("0.25")} and ${at("0.75")}, nine in ten between ${at("0.05")} and ${at("0.95")}; the last close seen is ${price(forecast.last_close)}.`;
}

/** What the past windows allow one to say; never more. */
function verdict(past, horizon) {
  const score = Object.fromEntries(past.scores.map((row) => [row.method, row]));
  const words = [];
  const held = score.kronos?.coverage?.["0.9"];
  if (held !== undefined)
    words.push(
      `In the last ${count(past.windows, "window")} of this instrument the 90\u00a0% band held ${percent(held, 0)} of ${count(past.windows * horizon, "close")}.`,
    );
  const beside = score.historical_volatility ?? score.last_price;
  if (score.kronos && beside) {
    const by = score.kronos.crps / beside.crps - 1;
    const name = METHODS[beside.method].toLowerCase();
    let told =
      Math.abs(by) < 0.005
        ? `Its error (CRPS) was as large as that of ${name}`
        : `Its error (CRPS) was ${percent(Math.abs(by), 0)} ${by < 0 ? "smaller" : "larger"} than that of ${name}`;
    const share = past.better_than?.[beside.method];
    if (share !== undefined) {
      const wins = Math.round(share * past.windows);
      const chance = coin(wins, past.windows);
      const often = chance < 0.01 ? "less than 1\u00a0%" : percent(chance, 0);
      told += `; it was the better one in ${wins} of ${past.windows} windows, ${chance < 0.05 ? `a split that chance alone gives, this uneven or more, in ${often} of cases` : `which proves nothing: chance alone gives a split this uneven or more in ${often} of cases`}`;
    }
    words.push(`${told}.`);
  }
  return words.join(" ");
}

function facts(forecast) {
  const { outlook, timestamps, quantiles, last_close: last } = forecast;
  const end = timestamps.length - 1;
  const change = (key) => percent(quantiles.close[key][end] / last - 1, 1, true);
  const band = (low, high) =>
    span(quantiles.close[low][end] / last - 1, quantiles.close[high][end] / last - 1);
  const fact = (name, value, small) =>
    h("div", {}, h("dt", {}, name), h("dd", {}, value, h("small", {}, small)));
  return h(
    "dl",
    { class: "facts" },
    fact("Last close seen", price(last), time(forecast.last_timestamp)),
    fact("Median return", change("0.5"), `over ${count(timestamps.length, "bar")}`),
    fact("Mean return", percent(outlook.last_return, 1, true), "mean of the paths"),
    fact("50 % band", band("0.25", "0.75"), "return until the last bar"),
    fact("90 % band", band("0.05", "0.95"), "return until the last bar"),
    fact("Paths that end higher", percent(outlook.prob_up, 0), `of ${forecast.settings.paths}`),
    fact("Volatility", percent(outlook.volatility, 2), "per bar"),
    fact("5 % shortfall", percent(outlook.shortfall_5, 1, true), "mean of the worst 5 %"),
  );
}

function legend(forecast) {
  const band = (opacity) =>
    swatch(
      svg("rect", {
        x: 0,
        y: 1,
        width: 22,
        height: 12,
        fill: "var(--forecast)",
        "fill-opacity": opacity,
      }),
    );
  const candle = (colour) =>
    swatch(
      svg("path", { d: "M6 0v14M16 0v14", stroke: colour }),
      svg("rect", { x: 3, y: 3, width: 6, height: 8, fill: "var(--panel)", stroke: colour }),
      svg("rect", { x: 13, y: 3, width: 6, height: 8, fill: colour, stroke: colour }),
    );
  return h(
    "ul",
    { class: "legend" },
    h("li", {}, candle("var(--ink)"), "seen: hollow up, filled down"),
    h(
      "li",
      {},
      swatch(svg("path", { d: "M0 7h22", stroke: "var(--forecast)", "stroke-width": 2 })),
      "median",
    ),
    h("li", {}, band(0.52), "50 %"),
    h("li", {}, band(0.32), "80 %"),
    h("li", {}, band(0.16), "90 % of the paths"),
    forecast.realised?.length ? h("li", {}, candle("var(--realised)"), "what came") : null,
  );
}

function scoreTable(scores, title) {
  const best = Math.min(...scores.map((row) => row.crps));
  const cover = (row, level) => (row.coverage ? percent(row.coverage[level], 0) : NONE);
  return scrolling(
    h(
      "table",
      { class: "tight" },
      caption(title),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("th", { class: "text", scope: "col", rowspan: 2 }, "Method"),
          h("th", { scope: "col", rowspan: 2 }, "CRPS, % of price"),
          h("th", { scope: "colgroup", colspan: 3, class: "group" }, "Closes inside the band of"),
        ),
        h(
          "tr",
          {},
          ["50", "80", "90"].map((level) => h("th", { scope: "col" }, `${level}\u00a0%`)),
        ),
      ),
      h(
        "tbody",
        {},
        scores.map((row) =>
          h(
            "tr",
            { class: row.crps === best && "best" },
            h("th", { scope: "row" }, METHODS[row.method] ?? row.method),
            h("td", { class: "figure" }, fixed(100 * row.crps, 2)),
            ["0.5", "0.8", "0.9"].map((level) => h("td", {}, cover(row, level))),
          ),
        ),
      ),
    ),
    title,
  );
}

let measured = null;

/** Past windows that are being measured give way: the model has one worker. */
export function stopMeasuring() {
  if (measured) call(measured, { method: "DELETE", keepalive: true }).catch(() => {});
  measured = null;
}

/** Measure the last windows of the instrument, or take up the job that does, and show them in place
 *  of `section`. */
async function measure(section, forecast, job = null) {
  const place = h("div", { "aria-live": "polite" });
  section.querySelector(".verdict").textContent = "Measuring how such forecasts have done here …";
  section.querySelector(".measure").replaceChildren(place);
  try {
    const made = await follow(
      job
        ? answered(job)
        : await call(`/forecasts/${forecast.id}/track-record`, {
            method: "POST",
            json: { windows: 20 },
          }),
      { place, onJob: (one) => (measured = one.status_url) },
    );
    if (!section.isConnected) return;
    const next = made ? { ...forecast, track_record: made.track_record } : forecast;
    const better = recordSection(next, made ? null : "It was cancelled.");
    section.replaceWith(better);
    await better.draw?.();
  } catch (error) {
    if (!(error instanceof ApiProblem)) throw error;
    if (section.isConnected) section.replaceWith(recordSection(forecast, sentence(error.message)));
  } finally {
    measured = null;
  }
}

/** The job that measures past windows of this forecast, if one does. */
async function measuring(id) {
  try {
    const { mine, others } = await running("track_record");
    return [...mine, ...others].find(
      (job) => job.kind === "track_record" && job.about.forecast === id,
    );
  } catch (error) {
    if (!(error instanceof ApiProblem)) throw error;
    return null;
  }
}

function recordSection(forecast, reason = null) {
  const {
    past,
    past_reason: unknown,
    this_window: now,
    this_window_reason: open,
  } = forecast.track_record;
  const tables = h("div", { class: "record" });
  if (now) tables.append(scoreTable(now, "This very window, against what came"));
  else
    tables.append(
      h(
        "p",
        { class: "note" },
        `This window cannot be judged yet: ${open ?? "the bars to come are not known"}.`,
      ),
    );
  if (past)
    tables.append(
      scoreTable(
        past.scores,
        `The last ${count(past.windows, "window")} of ${forecast.instrument}, last bars seen ${time(past.first)} to ${time(past.last)}`,
      ),
    );
  const words = past
    ? verdict(past, forecast.timestamps.length)
    : (reason ??
      (unknown
        ? sentence(unknown)
        : "The last windows of this instrument have not been measured."));
  const section = h(
    "section",
    { class: "panel", id: "record", "aria-labelledby": "record-title" },
    h("h2", { id: "record-title" }, "How far has it been right here?"),
    h("p", { class: "verdict" }, words),
    tables,
  );
  if (past?.notes.length)
    section.append(h("p", { class: "note after" }, past.notes.map(sentence).join(" ")));
  if (past?.by_window?.length > 1) {
    const chart = h("div", {
      class: "chart low",
      role: "img",
      "aria-label": "CRPS of each past window, by method",
    });
    section.append(h("h3", {}, "Error of each window"), chart);
    const windows = past.by_window;
    const methods = Object.keys(METHODS).filter((method) => method in windows[0].crps);
    const curves = methods.map((method) => ({
      name: METHODS[method],
      values: windows.map((window) => 100 * window.crps[method]),
      quiet: method === "last_price",
    }));
    section.draw = () =>
      draw(
        chart,
        lines(
          curves,
          windows.map((window) => time(window.date)),
          {
            yTitle: "CRPS, % of price",
            xTitle: "last bar seen",
            format: ".2f",
            marks: true,
            fromZero: true,
          },
        ),
      );
  } else if (!past) {
    section.append(
      h(
        "div",
        { class: "measure" },
        h(
          "button",
          { type: "button", class: "plain", onclick: () => measure(section, forecast) },
          "Measure the last 20 windows",
        ),
      ),
    );
  }
  section.append(
    h(
      "p",
      { class: "hint" },
      "CRPS is the error of a whole distribution in units of return; lower is better, and of a single number it is the absolute error. A band is right when it holds as large a share of the closes as its name says. Past windows do not overlap; the weights may have seen them if they lie before the end of training.",
    ),
  );
  return section;
}

function numbers(forecast) {
  const [head, ...rows] = figures(forecast);
  const keep = head
    .map((name, place) => [name, place])
    .filter(([name]) => /^(timestamp|close_|prob_up|realised_close)/.test(name));
  const cell = (name, value) =>
    name === "timestamp"
      ? time(value)
      : name === "prob_up"
        ? percent(value, 0)
        : value === ""
          ? NONE
          : price(value, forecast.last_close);
  const title = (name) =>
    name === "timestamp"
      ? "Bar"
      : name === "prob_up"
        ? "P(up)"
        : name === "realised_close"
          ? "came"
          : name === "close_0.5"
            ? "median"
            : `${fixed(100 * Number(name.slice(6)), 0)} %`;
  const table = h(
    "table",
    {},
    caption(
      "Quantiles of the close, in the units of the bars, and the share of paths above the last close.",
    ),
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        keep.map(([name]) =>
          h("th", { scope: "col", class: name === "timestamp" && "text" }, title(name)),
        ),
      ),
    ),
    h(
      "tbody",
      {},
      rows.map((row) =>
        h(
          "tr",
          {},
          keep.map(([name, place]) =>
            name === "timestamp"
              ? h("th", { scope: "row" }, cell(name, row[place]))
              : h("td", {}, cell(name, row[place])),
          ),
        ),
      ),
    ),
  );
  return h(
    "details",
    {},
    h("summary", {}, "The numbers"),
    scrolling(table, "The numbers of the forecast"),
  );
}

function provenance(forecast) {
  const { settings } = forecast;
  const rows = [
    ["Id", h("code", {}, forecast.id)],
    ["Made", moment(forecast.created)],
    [
      "Bars",
      `${count(forecast.bars_seen, "bar")} seen, until ${time(forecast.last_timestamp)}; from ${forecast.source_name}`,
    ],
    ["SHA-256 of the bars", h("code", {}, forecast.bars_digest)],
    [
      "Weights",
      h(
        "span",
        {},
        forecast.checkpoint.name,
        ", digest ",
        h("code", {}, forecast.checkpoint.digest),
        forecast.checkpoint.revision ? `, revision ${forecast.checkpoint.revision}` : "",
      ),
    ],
    ["Spread", forecast.calibration],
    ["Times of the bars to come", forecast.rule],
    [
      "Sampling",
      `temperature ${settings.temperature}, top-p ${settings.top_p}, top-k ${settings.top_k}, ${count(settings.paths, "path")}, seed ${settings.seed}`,
    ],
  ];
  return h(
    "details",
    {},
    h("summary", {}, "Where this comes from"),
    scrolling(
      h(
        "table",
        { class: "facts-table" },
        h(
          "tbody",
          {},
          rows.map(([name, value]) =>
            h("tr", {}, h("th", { scope: "row" }, name), h("td", { class: "words" }, value)),
          ),
        ),
      ),
      "Where this forecast comes from",
    ),
  );
}

function toolbar(forecast, chart) {
  const button = (label, act, more = {}) =>
    h("button", { type: "button", class: "plain small", onclick: act, ...more }, label);
  const toggle = (label, flip, more = {}) => {
    const node = button(
      label,
      () => {
        const on = node.getAttribute("aria-pressed") !== "true";
        node.setAttribute("aria-pressed", String(on));
        flip(on);
      },
      { "aria-pressed": "false", ...more },
    );
    return node;
  };
  const ranges = RANGES.filter(([, bars]) => bars < forecast.history.length).map(([label, bars]) =>
    button(label, () => {
      chart.show(bars);
      chart.isFitted = false;
      chart.move(...chart.range);
    }),
  );
  const name = (suffix) =>
    `${fileName(forecast.instrument, forecast.last_timestamp.slice(0, 10), forecast.id.slice(0, 6))}.${suffix}`;
  return h(
    "div",
    { class: "tools", role: "toolbar", "aria-label": "Chart" },
    h("div", { class: "group" }, ranges),
    h(
      "div",
      { class: "group" },
      button("−", () => chart.zoom(1 / 0.7), { "aria-label": "Zoom out" }),
      button("+", () => chart.zoom(0.7), { "aria-label": "Zoom in" }),
      button("‹", () => chart.pan(-0.3), { "aria-label": "Earlier" }),
      button("›", () => chart.pan(0.3), { "aria-label": "Later" }),
    ),
    h(
      "div",
      { class: "group" },
      toggle("Log scale", (on) => {
        chart.log = on;
        chart.redraw();
      }),
      forecast.paths?.length
        ? toggle(
            "Single paths",
            (on) => {
              chart.hasPaths = on;
              chart.redraw();
            },
            { title: `${count(forecast.paths.length, "path")} of ${forecast.settings.paths}` },
          )
        : null,
    ),
    h(
      "div",
      { class: "group push" },
      button(
        "PNG",
        async () =>
          download(name("png"), await await fetchPicture(await chart.picture()), "image/png"),
        { "aria-label": "Save the chart as PNG" },
      ),
      button("CSV", () => download(name("csv"), csv(forecast), "text/csv"), {
        "aria-label": "Save the numbers as CSV",
      }),
      button(
        "JSON",
        () => download(name("json"), JSON.stringify(forecast, null, 1), "application/json"),
        { "aria-label": "Save the forecast as JSON" },
      ),
    ),
  );
}

/** A picture's data address as a file; nothing is fetched. */
function fetchPicture(address) {
  const bytes = atob(address.slice(address.indexOf(",") + 1));
  return new Blob([Uint8Array.from(bytes, (letter) => letter.charCodeAt(0))], {
    type: "image/png",
  });
}

/** Show it; `measures` also measures the past windows where that has not been done. */
export async function showForecast(place, forecast, { actions, measures = false } = {}) {
  const reshow = (next) => showForecast(place, next, { actions });
  const chartPlace = h("div");
  const record = recordSection(forecast);
  const meta = [
    forecast.checkpoint.name,
    forecast.calibrated ? "calibrated" : "as drawn",
    count(forecast.settings.paths, "path"),
    `${count(forecast.bars_seen, "bar")} seen`,
    `seed ${forecast.settings.seed}`,
    forecast.kept ? "kept" : "not kept",
  ];
  const chart = new ForecastChart(forecast, chartPlace);
  put(
    place,
    h(
      "section",
      { class: "panel", "aria-labelledby": "forecast-title" },
      h(
        "div",
        { class: "above" },
        h(
          "div",
          {},
          h(
            "h2",
            { id: "forecast-title", tabindex: "-1" },
            `${forecast.instrument}, ${count(forecast.timestamps.length, "bar")} after ${time(forecast.last_timestamp)}`,
          ),
          h(
            "p",
            { class: "meta" },
            meta.map((word) => h("span", {}, word)),
          ),
        ),
        actions ? h("div", { class: "buttons" }, actions(forecast, reshow)) : null,
      ),
      h("p", { class: "lead" }, lead(forecast)),
      forecast.notes.length
        ? h(
            "div",
            { class: "note" },
            h("b", {}, "To know: "),
            forecast.notes.length === 1
              ? sentence(forecast.notes[0])
              : h(
                  "ul",
                  { class: "notes" },
                  forecast.notes.map((note) => h("li", {}, sentence(note))),
                ),
          )
        : null,
      facts(forecast),
      toolbar(forecast, chart),
      chartPlace,
      legend(forecast),
      numbers(forecast),
      provenance(forecast),
    ),
    record,
  );
  await Promise.all([chart.begin(), record.draw?.()]);
  place.dataset.drawn = forecast.id;
  if (!forecast.track_record.past) {
    const job = measures ? null : await measuring(forecast.id);
    if (measures || job) measure(record, forecast, job);
  }
  return chart;
}
