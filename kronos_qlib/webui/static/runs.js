// Runs, and several of them side by side.

import { ApiProblem, call, get } from "./api.js";
import { axis, colour, draw, label, layout, lines } from "./chart.js";
import { at, caption, empty, h, put, scrolling } from "./dom.js";
import { NONE, count, fixed, moment, percent, sentence } from "./format.js";
import { answered, follow, running } from "./jobs.js";
import { clearProblems, showProblem } from "./problems.js";
import { sortable } from "./table.js";

const SHARES = new Set([
  "oracle_share",
  "annual_return",
  "excess_return",
  "excess_low",
  "excess_high",
  "max_drawdown",
  "turnover",
  "deflated_sharpe",
]);
const INTERVALS = {
  rank_ic: ["rank_ic_low", "rank_ic_high"],
  excess_return: ["excess_low", "excess_high"],
};
const BOUNDS = new Set(Object.values(INTERVALS).flat());
const chosen = new Set();
/** Runs side by side: as many as the API takes. */
const MOST_COMPARED = 8;

const FOUR = new Set(["ic", "rank_ic", ...INTERVALS.rank_ic]);
const WHOLE = new Set(["trials", "capacity"]);

function figure(key, value) {
  if (SHARES.has(key))
    return percent(
      value,
      key === "deflated_sharpe" ? 0 : 1,
      key.startsWith("excess") || key === "annual_return",
    );
  if (key === "wall_seconds") return Number.isFinite(value) ? `${fixed(value, 1)}\u00a0s` : NONE;
  return fixed(value, WHOLE.has(key) ? 0 : FOUR.has(key) ? 4 : 2);
}

function measured(key, values) {
  const [low, high] = (INTERVALS[key] ?? []).map((bound) => values[bound]);
  const text = figure(key, values[key]);
  return Number.isFinite(low) && Number.isFinite(high)
    ? [text, h("small", { class: "quiet" }, ` [${figure(key, low)}, ${figure(key, high)}]`)]
    : text;
}

/** How runs are asked for: by name, and by id where a name is that of two. */
function nameFor({ runs }) {
  const hasTwins = new Set(runs.map((run) => run.name)).size < runs.length;
  return (run) => (hasTwins ? run.run_id : run.name);
}

function showRuns(answer) {
  const place = at("runs");
  if (!answer.runs.length) {
    put(
      place,
      empty(
        "No runs yet",
        answer.reason ?? "No run of a workflow was found.",
        h("p", {}, "A first one: ", h("code", {}, "qrun workflows/workflow_kronos.yaml")),
      ),
    );
    return;
  }
  const compare = h(
    "button",
    { type: "button", class: "primary", disabled: true, onclick: () => read() },
    "Compare",
  );
  const said = h("p", { class: "quiet", role: "status" });
  const tell = () => {
    compare.disabled = chosen.size < 2 || chosen.size > MOST_COMPARED;
    said.textContent =
      chosen.size === 0
        ? "Nothing chosen"
        : chosen.size === 1
          ? "1 chosen; another one makes a comparison"
          : chosen.size > MOST_COMPARED
            ? `${chosen.size} chosen; ${MOST_COMPARED} at most are compared`
            : `${chosen.size} chosen`;
  };
  tell();
  const keys = Object.keys(answer.measures).filter(
    (key) => !BOUNDS.has(key) && answer.runs.some((run) => Number.isFinite(run.metrics[key])),
  );
  const ask = nameFor(answer);
  const tick = (run) =>
    h("input", {
      type: "checkbox",
      "aria-label": `Choose ${run.name}`,
      checked: chosen.has(ask(run)),
      onchange: (event) => {
        chosen[event.target.checked ? "add" : "delete"](ask(run));
        tell();
      },
    });
  const columns = [
    { key: "tick", title: "", label: "Choose", show: tick },
    {
      key: "name",
      title: "Run",
      text: true,
      head: true,
      of: (run) => run.name,
      show: (run) => [
        run.name,
        run.experiment !== run.name ? h("div", { class: "hint" }, run.experiment) : null,
      ],
    },
    {
      key: "model",
      title: "Model",
      text: true,
      of: (run) => run.model,
      show: (run) => run.model ?? NONE,
    },
    {
      key: "finished",
      title: "Finished",
      of: (run) => run.finished,
      show: (run) => moment(run.finished),
    },
    ...keys.map((key) => ({
      key,
      title: answer.measures[key],
      of: (run) => run.metrics[key],
      show: (run) => measured(key, run.metrics),
    })),
  ];
  const table = sortable(columns, answer.runs, {
    label: "Runs",
    sort: { key: "finished", down: true },
  });
  put(
    place,
    table.node,
    h("div", { class: "buttons end" }, said, compare),
    h(
      "p",
      { class: "hint" },
      "Brackets are 95 % intervals. An excess return whose interval holds 0 is not told from none.",
    ),
  );
}

function panel(title, words, drawing) {
  const chart = h("div", { class: "chart low", role: "img", "aria-label": `${title}. ${words}` });
  const node = h(
    "section",
    { class: "panel" },
    h("h3", {}, title),
    h("p", { class: "hint" }, words),
    chart,
  );
  node.draw = () => draw(chart, drawing);
  return node;
}

function forest(tests, isShare) {
  return (width) => {
    const known = tests.filter((test) => Number.isFinite(test.difference));
    const name = (test, place) =>
      `${label(test.one)}${width < 560 ? "<br>" : " "}\u2212 ${label(test.other)}${"\u200b".repeat(place)}`;
    return [
      known.map((test, place) => {
        const isClear = test.low > 0 || test.high < 0;
        const tone = isClear ? colour("forecast") : colour("quiet");
        return {
          x: [test.low, test.difference, test.high],
          y: Array(3).fill(name(test, place)),
          mode: "lines+markers",
          line: { color: tone, width: 3 },
          marker: {
            color: tone,
            size: [0.1, 11, 0.1],
            symbol: isClear ? "circle" : "circle-open",
            line: { width: 2, color: tone },
          },
          hovertemplate: `%{x:${isShare ? ".3%" : ".4f"}}<extra></extra>`,
        };
      }),
      layout({
        height: 90 + 44 * known.length,
        hovermode: "closest",
        dragmode: false,
        xaxis: axis({
          title: { text: width < 560 ? "difference" : "difference, with its 95 % interval" },
          tickformat: isShare ? ".1~%" : undefined,
          tickangle: 0,
          zeroline: true,
          zerolinecolor: colour("strong-line"),
          nticks: Math.max(3, Math.floor(width / 110)),
        }),
        yaxis: axis({ autorange: "reversed", ticksuffix: "  " }),
      }),
    ];
  };
}

function testTable(tests, title, digits, show) {
  return scrolling(
    h(
      "table",
      { class: "tight" },
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          ["First", "Second"].map((word) => h("th", { class: "text", scope: "col" }, word)),
          ["Difference", "95 % interval", "p"].map((word) => h("th", { scope: "col" }, word)),
        ),
      ),
      h(
        "tbody",
        {},
        tests.map((test) =>
          h(
            "tr",
            {},
            h("th", { scope: "row", class: "name" }, test.one),
            h("td", { class: "text" }, test.other),
            test.reason && !Number.isFinite(test.difference)
              ? h("td", { class: "words", colspan: 3 }, test.reason)
              : [
                  h("td", {}, show(test.difference, digits)),
                  h("td", {}, `${show(test.low, digits)} to ${show(test.high, digits)}`),
                  h("td", {}, fixed(test.p_value, 3)),
                ],
          ),
        ),
      ),
    ),
    title,
  );
}

function tests(title, words, list, digits, show) {
  if (!list.length) return null;
  const known = list.filter((test) => Number.isFinite(test.difference));
  const chart = h("div", {
    class: "chart",
    role: "img",
    "aria-label": `${title}: differences and intervals; the table below holds them`,
  });
  const node = h(
    "section",
    { class: "panel" },
    h("h3", {}, title),
    h("p", { class: "hint" }, words),
    known.length ? chart : null,
    testTable(list, title, digits, show),
  );
  if (known.length) node.draw = () => draw(chart, forest(list, show === percent));
  return node;
}

function correlation(names, matrix) {
  if (names.length < 2 || !matrix.length) return null;
  const words = "Mean over days of the rank correlation of two runs' scores.";
  return h(
    "section",
    { class: "panel" },
    h("h3", {}, "How alike the signals are"),
    scrolling(
      h(
        "table",
        {},
        caption(words),
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("th", { class: "text", scope: "col" }, "Run"),
            names.map((name) => h("th", { scope: "col" }, name)),
          ),
        ),
        h(
          "tbody",
          {},
          matrix.map((row, place) =>
            h(
              "tr",
              {},
              h("th", { scope: "row", class: "name" }, names[place]),
              row.map((value) => h("td", {}, fixed(value, 2))),
            ),
          ),
        ),
      ),
      words,
    ),
  );
}

function blends(rows) {
  if (!rows.length) return null;
  const words =
    "Equal-weight mean of percentile ranks, against its better member; no weight is tuned.";
  return h(
    "section",
    { class: "panel" },
    h("h3", {}, "What a blend adds"),
    scrolling(
      h(
        "table",
        {},
        caption(words),
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("th", { class: "text", scope: "col" }, "Blend of"),
            ["Rank IC", "less its better member", "95 % interval"].map((word) =>
              h("th", { scope: "col" }, word),
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
              h("th", { scope: "row", class: "name" }, row.members.join(" + ")),
              h("td", {}, fixed(row.rank_ic, 4)),
              h("td", {}, fixed(row.test.difference, 4)),
              h("td", {}, `${fixed(row.test.low, 4)} to ${fixed(row.test.high, 4)}`),
            ),
          ),
        ),
      ),
      words,
    ),
  );
}

async function showComparison(compared) {
  const place = at("comparison");
  const names = compared.rows.map((row) => row.run);
  const keys = Object.keys(compared.measures).filter((key) => !BOUNDS.has(key));
  const measures = sortable(
    [
      {
        key: "run",
        title: "Run",
        text: true,
        head: true,
        of: (row) => row.run,
        show: (row) => row.run,
      },
      ...keys.map((key) => ({
        key,
        title: compared.measures[key],
        of: (row) => row.measures[key],
        show: (row) => measured(key, { ...row, ...row.measures }),
      })),
    ],
    compared.rows,
    { label: "What each run measured" },
  );
  const quiet = (curves) =>
    curves.map((curve) => ({ ...curve, quiet: !names.includes(curve.name) }));
  const curve = (data, title, words, how) =>
    data && panel(title, words, lines(quiet(data.curves), data.days, how));
  const charts = [
    curve(compared.equity, "Equity", "Growth of 1, after cost.", {
      yTitle: "growth of 1",
      format: ".3f",
    }),
    curve(compared.drawdown, "Drawdown", "Loss from the highest point so far.", {
      yTitle: "below the highest",
      format: ".1%",
      percentAxis: true,
    }),
    curve(compared.rank_ic, "Rank IC", `Mean of the last ${compared.rolling_days} days.`, {
      yTitle: "Rank IC",
      format: ".3f",
      zero: true,
    }),
    curve(
      compared.deciles,
      "Return by tenth of the score",
      "Lowest scores first; a signal climbs.",
      {
        yTitle: "mean return a day",
        xTitle: "tenth",
        format: ".2%",
        percentAxis: true,
        zero: true,
        marks: true,
      },
    ),
    curve(compared.decay, "Decay", "Rank IC of the score of so many days before.", {
      yTitle: "Rank IC",
      xTitle: "days before",
      format: ".3f",
      zero: true,
      marks: true,
    }),
  ].filter(Boolean);
  if (charts.length % 2) charts[0].classList.add("whole");
  const rest = [
    tests(
      "Is the Rank IC different?",
      "Paired by day. Filled marks: the interval leaves out 0. Hollow, grey ones: a difference of 0 is not ruled out.",
      compared.signal_tests,
      4,
      fixed,
    ),
    tests(
      "Is the excess return different?",
      "Daily excess return after cost, paired by day.",
      compared.return_tests,
      3,
      percent,
    ),
    correlation(names, compared.correlation),
    blends(compared.blends),
  ].filter(Boolean);
  put(
    place,
    h(
      "div",
      { class: "head" },
      h("h2", { id: "side", tabindex: "-1" }, `${names.length} runs side by side`),
    ),
    measures.node,
    h("div", { class: "split charts" }, charts),
    h("div", { class: "split" }, rest),
    compared.notes.length
      ? h(
          "ul",
          { class: "notes quiet" },
          compared.notes.map((note) => h("li", {}, sentence(note))),
        )
      : null,
    h(
      "details",
      {},
      h("summary", {}, "What the measures mean"),
      compared.definitions.map((words) => h("p", { class: "hint" }, words)),
    ),
  );
  at("side").focus({ preventScroll: true });
  place.scrollIntoView({ block: "start" });
  await Promise.all([...charts, ...rest].map((node) => node.draw?.()));
  place.dataset.drawn = names.join(",");
}

async function read(job = null) {
  clearProblems();
  const place = at("comparison");
  put(
    place,
    h("div", { class: "panel skeleton" }, h("p", {}, `Comparing ${count(chosen.size, "run")} …`)),
  );
  place.setAttribute("aria-busy", "true");
  const query = new URLSearchParams([...chosen].map((run) => ["runs", run]));
  history.replaceState(null, "", `/runs?${query}`);
  try {
    const compared = await follow(job ? answered(job) : await call(`/runs/compare?${query}`));
    if (compared) await showComparison(compared);
    else put(place);
  } catch (error) {
    put(place);
    showProblem(error);
    at("error").scrollIntoView({ block: "center" });
  }
}

/** The runs; and the comparison that was asked for before this page was loaded again. */
async function begin() {
  const job = (await running("compare")).mine.at(-1);
  const asked = job?.about.runs ?? new URLSearchParams(location.search).getAll("runs");
  const answer = await get("/runs");
  for (const run of answer.runs)
    if (asked.includes(run.name) || asked.includes(run.run_id)) chosen.add(nameFor(answer)(run));
  showRuns(answer);
  if (job || chosen.size > 1) await read(job);
}

try {
  await begin();
} catch (error) {
  if (!(error instanceof ApiProblem)) throw error;
  put(at("runs"));
  showProblem(error);
}
