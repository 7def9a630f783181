// The forecast page: what is asked, and the answer.

import { ApiProblem, call, get } from "./api.js";
import { at, h, put } from "./dom.js";
import { showForecast, stopMeasuring } from "./forecast_view.js";
import { bytes, capital, count, millions } from "./format.js";
import { answered, follow, running } from "./jobs.js";
import { clearProblems, showProblem } from "./problems.js";

const form = at("ask");
const place = at("forecast");
/** Of an uploaded file, as the API takes it. */
const MOST_BYTES = 20 * 1024 ** 2;
const NUMBERS = [
  "horizon",
  "lookback",
  "paths",
  "seed",
  "temperature",
  "top_p",
  "top_k",
  "single_paths",
];
let models = [];
let times = 0;
let newest = 0;
let file = null;

const source = () => form.elements.source.value;

function showSource() {
  at("from-folder").hidden = source() !== "folder";
  at("from-file").hidden = source() !== "file";
}

function take(chosen) {
  file = chosen ?? null;
  at("drop-title").textContent = file
    ? `${file.name}, ${bytes(file.size)}`
    : "Drop a file here, or choose one";
  at("file-error").textContent = "";
  at("file").removeAttribute("aria-invalid");
}

function watchFile() {
  const drop = at("drop");
  at("file").addEventListener("change", (event) => take(event.target.files[0]));
  for (const kind of ["dragover", "dragenter"]) {
    document.addEventListener(kind, (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      form.elements.source.value = "file";
      showSource();
      drop.classList.add("over");
    });
  }
  document.addEventListener(
    "dragleave",
    (event) => !event.relatedTarget && drop.classList.remove("over"),
  );
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  });
}

async function suggest() {
  try {
    const found = await get(
      `/instruments?q=${encodeURIComponent(at("instrument").value.trim().slice(0, 80))}`,
    );
    at("instruments").replaceChildren(
      ...found.instruments.map((name) => h("option", { value: name })),
    );
    return found;
  } catch (error) {
    if (!(error instanceof ApiProblem)) throw error;
    return null;
  }
}

async function readFolder() {
  const found = await suggest();
  const state = at("folder-state");
  state.hidden = false;
  if (!found) state.textContent = "The Qlib folder did not answer.";
  else if (!found.folder) {
    state.textContent =
      "This page was started without --data, so there are no instruments to choose. Drop in a file, or start it as: kronos-qlib web --data FOLDER";
    form.elements.source.value = "file";
    showSource();
  } else {
    state.textContent = `${found.folder}: ${count(found.total, "instrument")}, ${found.freq === "day" ? "daily bars" : `bars of ${found.freq}`}, ${found.first?.slice(0, 10)} to ${found.last?.slice(0, 10)}`;
    if (found.freq && found.freq !== "day") at("date").type = "datetime-local";
    const cut = found.freq === "day" ? 10 : 16;
    if (found.first) at("date").min = found.first.slice(0, cut);
    if (found.last) at("date").max = found.last.slice(0, cut);
  }
}

function tellModel() {
  const chosen = models.find((model) => model.name === at("checkpoint").value);
  if (!chosen) return;
  const size = chosen.parameters ? `${millions(chosen.parameters)} parameters` : "size not known";
  const context = chosen.max_context ? `sees up to ${count(chosen.max_context, "bar")}` : null;
  const state = {
    loaded: `loaded on ${chosen.device}`,
    loading: "is being loaded …",
    here: "on this machine, not loaded yet",
    "to fetch": "has to be fetched from the Hub",
    broken: chosen.problem ?? "cannot be read",
  }[chosen.state];
  at("checkpoint-hint").textContent = [size, context, state].filter(Boolean).join(", ");
  const offers = { here: "Load it now", "to fetch": "Fetch and load it", broken: "Try it again" };
  at("load").hidden = !(chosen.state in offers);
  at("load").textContent = offers[chosen.state] ?? "";
}

async function readModels() {
  try {
    const answer = await get("/models");
    models = answer.models;
    const select = at("checkpoint");
    const before = select.dataset.touched ? select.value : answer.default;
    select.replaceChildren(
      ...models.map((model) => h("option", { value: model.name }, model.name)),
    );
    if (models.some((model) => model.name === before)) select.value = before;
    tellModel();
    if (models.some((model) => model.state === "loading")) setTimeout(readModels, 1000);
  } catch (error) {
    showProblem(error, form);
  }
}

async function load() {
  at("load").disabled = true;
  try {
    await follow(
      await call("/models/load", { method: "POST", json: { checkpoint: at("checkpoint").value } }),
    );
  } catch (error) {
    showProblem(error, form);
  } finally {
    at("load").disabled = false;
    readModels();
  }
}

/** What the form says, as the API takes it; an empty field is left out. */
function request() {
  const asking = {
    calibration: form.elements.calibration.value,
    checkpoint: at("checkpoint").value,
    keep: at("keep").checked,
    wait: 0.4,
  };
  for (const name of NUMBERS) if (at(name).value !== "") asking[name] = Number(at(name).value);
  for (const name of ["exchange", "freq"])
    if (at(name).value.trim()) asking[name] = at(name).value.trim();
  const own =
    source() === "folder"
      ? { instrument: "instrument", date: "date" }
      : {
          instrument: "file_instrument",
          date: "file_date",
          zone: "zone",
          date_order: "date_order",
          encoding: "encoding",
        };
  for (const [name, id] of Object.entries(own))
    if (at(id).value.trim()) asking[name] = at(id).value.trim();
  return asking;
}

function asForm(asking) {
  const body = new FormData();
  body.append("file", file);
  for (const [name, value] of Object.entries(asking)) body.append(name, String(value));
  return body;
}

/** What a browser knows without asking: a number that is none, a file that is missing. */
function missing() {
  for (const name of NUMBERS) {
    const input = at(name);
    if (input.validity.valid) continue;
    const { min, max } = input;
    const message = input.validity.badInput
      ? "A number is needed here."
      : input.validity.rangeUnderflow || input.validity.rangeOverflow
        ? `Between ${min} and ${Number(max).toLocaleString("en-US")}.`
        : input.validity.stepMismatch
          ? "A whole number is needed here."
          : input.validationMessage;
    return { field: name, message };
  }
  const date = at("date");
  if (source() === "folder" && !date.validity.valid) {
    const message = date.validity.badInput
      ? "A whole date is needed, or none."
      : `Between ${date.min} and ${date.max}.`;
    return { field: "date", message };
  }
  if (source() === "file" && !file)
    return { field: "file", message: "Choose a file with bars first." };
  if (source() === "file" && file.size > MOST_BYTES)
    return {
      field: "file",
      message: `It has ${bytes(file.size)}; ${bytes(MOST_BYTES)} are the most.`,
    };
  if (source() === "folder" && !at("instrument").value.trim())
    return { field: "instrument", message: "Name an instrument of the folder." };
  return null;
}

async function ask() {
  clearProblems(form);
  const lacks = missing();
  const inputs =
    source() === "file"
      ? { instrument: "file_instrument", date: "file_date", bars: "file" }
      : { bars: "instrument" };
  if (lacks) {
    showProblem(
      new ApiProblem({ title: "Something is missing", detail: lacks.message, errors: [lacks] }),
      form,
    );
    return;
  }
  const asking = request();
  stopMeasuring();
  place.setAttribute("aria-busy", "true");
  place.firstElementChild?.classList.add("stale");
  // What is quick is answered at once; what takes longer says so, before it has a place in the queue.
  const waiting = h(
    "div",
    { class: "panel job" },
    h(
      "p",
      {},
      h("b", {}, asking.instrument ?? file?.name ?? "Bars"),
      " ",
      h("span", { class: "quiet" }, "is asked for …"),
    ),
    h("progress", { "aria-label": "Asked for" }),
  );
  const patience = setTimeout(() => at("jobs").append(waiting), 150);
  const answer = async () => {
    try {
      return await call("/predict", {
        method: "POST",
        ...(source() === "file" ? { form: asForm(asking) } : { json: asking }),
      });
    } finally {
      clearTimeout(patience);
      waiting.remove();
    }
  };
  await arrive(answer, inputs);
}

/** Show what is answered once it is there, unless something that was asked for later is. */
async function arrive(answer, inputs = {}) {
  times += 1;
  const mine = times;
  try {
    const forecast = await follow(await answer());
    if (forecast && mine > newest) {
      newest = mine;
      await showForecast(place, forecast, { measures: true });
      history.replaceState(null, "", `/?forecast=${forecast.id}`);
      at("forecast-title").focus({ preventScroll: true });
      place.scrollIntoView({ block: "start" });
    }
  } catch (error) {
    showProblem(error, form, inputs);
    if (matchMedia("(max-width: 1000px)").matches && !form.querySelector("[aria-invalid]"))
      at("error").scrollIntoView({ block: "center" });
  } finally {
    if (mine === times) {
      place.removeAttribute("aria-busy");
      place.firstElementChild?.classList.remove("stale");
    }
  }
}

/** What keeps the model busy for another tab or program: a line, and a link to what came of it. */
async function watch(job) {
  try {
    const made = await follow(answered(job), { isOwn: false });
    if (job.kind !== "forecast" || !made) return;
    const link = h("a", { href: `/?forecast=${made.id}` }, "Open it");
    at("jobs").append(
      h(
        "div",
        { class: "panel job" },
        h("p", {}, h("b", {}, capital(job.label)), " is there. ", link),
      ),
    );
  } catch (error) {
    if (!(error instanceof ApiProblem)) throw error; // that it failed is told where it was asked for
  }
}

/** What was asked for before this page was loaded again, and what else is at work. */
async function takeUp(shown) {
  try {
    const { mine, others } = await running("forecast", "load");
    for (const job of mine) {
      if (job.kind === "forecast") arrive(async () => answered(job));
      else
        follow(answered(job))
          .catch((error) => showProblem(error, form))
          .finally(readModels);
    }
    others.filter((job) => job.about.forecast !== shown).forEach(watch);
  } catch (error) {
    showProblem(error, form);
  }
}

/** An address may name an instrument and date, or a forecast to open again. */
async function readAddress() {
  const address = new URLSearchParams(location.search);
  for (const name of ["instrument", "date", "checkpoint"])
    if (address.get(name)) at(name).value = address.get(name);
  const id = address.get("forecast");
  const opened = sessionStorage.getItem("open");
  sessionStorage.removeItem("open");
  if (/^[0-9a-f]{20}$/.test(id ?? "")) {
    try {
      put(place, h("div", { class: "panel skeleton" }, h("p", {}, "Opening the forecast …")));
      await showForecast(place, await get(`/forecasts/${id}`));
    } catch (error) {
      put(place);
      showProblem(error, form);
    }
  }
  await takeUp(id);
  if (opened && opened === address.get("instrument")) ask();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
form.addEventListener("change", (event) => {
  if (event.target.name === "source") showSource();
  if (event.target.id === "checkpoint") {
    event.target.dataset.touched = "yes";
    tellModel();
  }
});
let typing = 0;
at("instrument").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(suggest, 150);
});
at("load").addEventListener("click", load);
watchFile();
showSource();
readFolder();
readModels();
readAddress();
