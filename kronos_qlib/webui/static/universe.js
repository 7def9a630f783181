// One day, ranked: where each name stands, how unusual that is for it, and why.

import { ApiProblem, call, get } from "./api.js";
import { at, empty, h, put, svg } from "./dom.js";
import { capital, count, fixed, percent, sentence, time } from "./format.js";
import { answered, follow, running } from "./jobs.js";
import { clearProblems, showProblem } from "./problems.js";
import { sortable } from "./table.js";

const place = at("universe");
const form = at("choose");
let asked = 0;

function sparkline(values, days) {
  const known = values.filter((value) => Number.isFinite(value));
  if (known.length < 2) return "";
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const x = (index) => ((108 * index) / (values.length - 1) + 1).toFixed(1);
  const y = (value) => (high === low ? 13 : 24 - (22 * (value - low)) / (high - low)).toFixed(1);
  let path = "";
  let isGap = true;
  values.forEach((value, index) => {
    if (!Number.isFinite(value)) isGap = true;
    else {
      path += `${isGap ? "M" : "L"}${x(index)} ${y(value)}`;
      isGap = false;
    }
  });
  const last = values.length - 1;
  const label = `Scores of ${count(known.length, "day")} until ${days.at(-1)}: lowest ${fixed(low, 4)}, highest ${fixed(high, 4)}`;
  return svg(
    "svg",
    { class: "spark", viewBox: "0 0 110 26", role: "img", "aria-label": label },
    svg("path", { d: path }),
    Number.isFinite(values[last])
      ? svg("circle", { cx: x(last), cy: y(values[last]), r: 2.2 })
      : null,
  );
}

function gauge(share) {
  if (!Number.isFinite(share)) return "–";
  return [
    fixed(100 * share, 0),
    svg(
      "svg",
      { class: "gauge", viewBox: "0 0 64 6", "aria-hidden": "true" },
      svg("rect", { class: "all", x: 0.5, y: 0.5, width: 63, height: 5, rx: 2.5 }),
      svg("rect", { class: "part", x: 0, y: 0, width: 64 * share, height: 6, rx: 3 }),
    ),
  ];
}

function columns(universe) {
  const address = (row) =>
    `/?${new URLSearchParams({ instrument: row.instrument, date: row.last_bar ?? universe.day })}`;
  const link = (row) =>
    h(
      "a",
      { href: address(row), onclick: () => sessionStorage.setItem("open", row.instrument) },
      row.instrument,
    );
  const has = (key) => universe.rows.some((row) => row[key] !== null && row[key] !== undefined);
  const all = [
    { key: "rank", title: "Rank", of: (row) => row.rank, show: (row) => row.rank },
    {
      key: "instrument",
      title: "Instrument",
      text: true,
      head: true,
      of: (row) => row.instrument,
      show: link,
    },
    { key: "score", title: "Score", of: (row) => row.score, show: (row) => fixed(row.score, 4) },
    {
      key: "percentile",
      title: "Percentile, 60 days",
      hint: "of this score among the name's own scores of the last 60 days",
      of: (row) => row.percentile,
      show: (row) => gauge(row.percentile),
    },
    { key: "sparkline", title: "60 days", show: (row) => sparkline(row.sparkline, universe.days) },
    {
      key: "expected_return",
      title: "Expected return",
      of: (row) => row.expected_return,
      hint: "mean close over all bars to come and all paths, against the last close",
      show: (row) => percent(row.expected_return, 2, true),
    },
    {
      key: "prob_up",
      title: "P(up)",
      hint: "share of paths that end above the last close",
      of: (row) => row.prob_up,
      show: (row) => percent(row.prob_up, 0),
    },
    {
      key: "volatility",
      title: "Volatility",
      hint: "mean over paths, per bar",
      of: (row) => row.volatility,
      show: (row) => percent(row.volatility, 2),
    },
    {
      key: "shortfall_5",
      title: "5 % shortfall",
      hint: "mean return of the worst 5 % of the paths",
      of: (row) => row.shortfall_5,
      show: (row) => percent(row.shortfall_5, 1, true),
    },
    {
      key: "last_bar",
      title: "Last bar",
      of: (row) => row.last_bar,
      show: (row) => [
        time(row.last_bar),
        row.age_days > 0
          ? h("span", { class: "quiet" }, `, ${count(row.age_days, "day")} old`)
          : null,
      ],
    },
    {
      key: "why",
      title: "",
      className: "act",
      label: "Explain",
      show: (row) =>
        h(
          "button",
          {
            type: "button",
            class: "plain small",
            "aria-label": `Why ${row.instrument} has rank ${row.rank}`,
            onclick: () => explain(universe, row),
          },
          "Why?",
        ),
    },
  ];
  return all.filter(
    ({ key }) =>
      ![
        "expected_return",
        "prob_up",
        "volatility",
        "shortfall_5",
        "percentile",
        "last_bar",
      ].includes(key) || has(key),
  );
}

/** Contributions as bars to both sides of 0: filled blue raises, hollow lowers. */
function effects(contributions) {
  const shown = contributions.slice(0, 15);
  const most = Math.max(...shown.map((one) => Math.abs(one.contribution))) || 1;
  const isBlend = new Set(contributions.map((one) => one.model)).size > 1;
  return h(
    "ul",
    { class: "effects" },
    shown.map((one) => {
      const length = Math.max((98 * Math.abs(one.contribution)) / most, 1);
      const isUp = one.contribution >= 0;
      const bar = svg("rect", {
        class: isUp ? "plus" : "minus",
        x: isUp ? 100 : 100 - length,
        y: 3,
        width: length,
        height: 12,
        "vector-effect": "non-scaling-stroke",
      });
      const middle = svg("path", {
        class: "axis",
        d: "M100 0V18",
        "vector-effect": "non-scaling-stroke",
      });
      return h(
        "li",
        {},
        h("span", {}, isBlend ? `${one.model}: ${one.feature}` : one.feature),
        svg(
          "svg",
          { viewBox: "0 0 200 18", preserveAspectRatio: "none", "aria-hidden": "true" },
          bar,
          middle,
        ),
        h(
          "span",
          { class: "figure" },
          `${one.contribution > 0 ? "+" : ""}${fixed(one.contribution, 4)}`,
        ),
      );
    }),
  );
}

const explain = (universe, row) =>
  openWhy(`Why ${row.instrument} has rank ${row.rank}`, () =>
    call(
      `/universe/${encodeURIComponent(row.instrument)}/why?${new URLSearchParams({ run: universe.run_id, ...(universe.fresh ? { fresh: "true" } : {}) })}`,
    ),
  );

let opened = 0;
let explaining = null;

async function openWhy(title, answer) {
  const dialog = at("why");
  at("why-title").textContent = title;
  const body = at("why-body");
  put(body, h("p", { class: "quiet" }, "Asking the model …"));
  dialog.showModal();
  opened += 1;
  const mine = opened;
  try {
    const jobs = h("div", { "aria-live": "polite" });
    body.append(jobs);
    const onJob = (job) => (explaining = job.status_url);
    const why = await follow(await answer(), { place: jobs, onJob });
    if (opened !== mine) return;
    if (!why) {
      put(body, h("p", { class: "quiet" }, "Cancelled."));
      return;
    }
    const hasLeftOut = why.contributions.some((one) => one.left_out !== null);
    put(
      body,
      why.words.map((sentence) => h("p", {}, sentence)),
      h(
        "p",
        { class: "hint" },
        `${capital(why.method)}. Score ${fixed(why.score, 4)} on ${why.day}, rank ${why.rank} of ${count(why.names, "name")}, run ${why.run}. Bars are in units of the score, the numbers in brackets above in standard deviations of the day's scores, both against the day's mean. Filled bars raise the score, hollow ones lower it${why.contributions.length > 15 ? `; the 15 largest of ${why.contributions.length}` : ""}.`,
      ),
      why.contributions.length
        ? effects(why.contributions)
        : h("p", { class: "note" }, "No input of this model can be told apart."),
      hasLeftOut
        ? h(
            "details",
            {},
            h("summary", {}, "Checked by leaving each out"),
            sortable(
              [
                {
                  key: "feature",
                  title: "Input",
                  text: true,
                  head: true,
                  of: (one) => one.feature,
                  show: (one) => one.feature,
                },
                {
                  key: "percentile",
                  title: "Percentile",
                  hint: "of the input among the day's names",
                  of: (one) => one.percentile,
                  show: (one) => percent(one.percentile, 0),
                },
                {
                  key: "contribution",
                  title: "Contribution",
                  of: (one) => one.contribution,
                  show: (one) => fixed(one.contribution, 4),
                },
                {
                  key: "left_out",
                  title: "Score without it",
                  hint: "change of the score",
                  of: (one) => one.left_out,
                  show: (one) => fixed(one.left_out, 4),
                },
              ],
              why.contributions,
              {
                label: "Contributions",
                words:
                  "In units of the score; the last column is the change of the score without the input.",
              },
            ).node,
          )
        : null,
    );
  } catch (error) {
    if (!(error instanceof ApiProblem)) throw error;
    if (opened === mine) put(body, h("p", { class: "note" }, sentence(error.message)));
  } finally {
    if (opened === mine) explaining = null;
  }
}

/** Reasons that nobody waits for give way: the model has one worker. */
function closeWhy() {
  opened += 1;
  if (explaining) call(explaining, { method: "DELETE" }).catch(() => {});
  explaining = null;
}

function show(universe) {
  at("day").textContent =
    `${universe.run}, ${universe.day}: ${count(universe.rows.length, "name")}, ${universe.fresh ? "scored now" : "as the run predicted"}. A rank orders names by score; it says nothing of how far apart they are.`;
  const filter = h("input", {
    id: "filter",
    type: "search",
    autocomplete: "off",
    spellcheck: "false",
  });
  const said = h("p", { class: "quiet", role: "status" }, "");
  const table = sortable(columns(universe), universe.rows, {
    label: "Ranked names",
    sort: { key: "rank", down: false },
  });
  filter.addEventListener("input", () => {
    const words = filter.value.trim().toLowerCase();
    const rows = universe.rows.filter((row) => row.instrument.toLowerCase().includes(words));
    said.textContent = words ? `${count(rows.length, "name")} of ${universe.rows.length}` : "";
    table.show(rows);
  });
  put(
    place,
    universe.notes.length
      ? h(
          "div",
          { class: "note" },
          universe.notes.map((note) => h("div", {}, sentence(note))),
        )
      : null,
    h(
      "div",
      { class: "above" },
      h("div", { class: "field" }, h("label", { for: "filter" }, "Filter by name"), filter),
      said,
    ),
    table.node,
    universe.rows.some(
      (row) => Number.isFinite(row.prob_up) || Number.isFinite(row.expected_return),
    )
      ? h(
          "p",
          { class: "hint" },
          "Expected return: mean close over all bars to come and all paths, against the last close. P(up): share of paths whose last bar closes higher. Volatility: mean over paths, per bar. 5 % shortfall: mean return to the last bar of the worst 5 % of the paths.",
        )
      : null,
  );
}

async function read(fresh = false, job = null) {
  clearProblems(form);
  asked += 1;
  const mine = asked;
  place.setAttribute("aria-busy", "true");
  const query = new URLSearchParams();
  if (at("run").value) query.set("run", at("run").value);
  history.replaceState(null, "", `/universe${query.size ? `?${query}` : ""}`);
  if (fresh) query.set("fresh", "true");
  try {
    const universe = await follow(job ? answered(job) : await call(`/universe?${query}`));
    if (universe && mine === asked) {
      if (universe.rows.length) show(universe);
      else
        put(
          place,
          empty(
            "No scores",
            ...(universe.notes.length ? universe.notes : ["This run left no scores."]),
          ),
        );
    }
  } catch (error) {
    if (mine !== asked) return;
    if (
      error instanceof ApiProblem &&
      [404, 422].includes(error.status) &&
      !at("run").value &&
      !fresh
    ) {
      put(
        place,
        empty(
          "Nothing ranked yet",
          error.message,
          h("p", {}, "A workflow run leaves scores: ", h("code", {}, "qrun workflow.yaml"), "."),
        ),
      );
      at("fresh").disabled = true;
    } else {
      if (place.querySelector(".skeleton")) put(place);
      showProblem(error, form);
    }
  } finally {
    place.removeAttribute("aria-busy");
  }
}

async function readRuns() {
  try {
    const { runs } = await get("/runs");
    at("run").append(
      ...runs.map((run) =>
        h(
          "option",
          { value: run.run_id },
          run.finished ? `${run.name}, ${run.finished.slice(0, 10)}` : run.name,
        ),
      ),
    );
    const wanted = new URLSearchParams(location.search).get("run");
    if (wanted && runs.some((run) => run.run_id === wanted)) at("run").value = wanted;
  } catch (error) {
    if (!(error instanceof ApiProblem)) throw error;
  }
}

/** What was asked for before this page was loaded again; else the ranking of the chosen run. */
async function begin() {
  await readRuns();
  let jobs = [];
  try {
    jobs = (await running("universe", "why")).mine;
  } catch (error) {
    if (!(error instanceof ApiProblem)) throw error;
  }
  const ranking = jobs.findLast((job) => job.kind === "universe");
  const why = jobs.findLast((job) => job.kind === "why");
  if (ranking) at("run").value = ranking.about.run ?? "";
  read(Boolean(ranking?.about.fresh), ranking);
  if (why) openWhy(`Why ${why.about.instrument} has its rank`, async () => answered(why));
}

at("run").addEventListener("change", () => read());
at("why").addEventListener("close", closeWhy);
at("fresh").addEventListener("click", () => read(true));
form.addEventListener("submit", (event) => event.preventDefault());
begin();
