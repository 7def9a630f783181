// Errors in words: beside the input they are about, and at the top of the results.

import { ApiProblem } from "./api.js";
import { at, h, put } from "./dom.js";

const TITLES = {
  400: "That cannot be",
  403: "Refused",
  404: "Not there",
  409: "Cancelled",
  413: "Too large",
  415: "Not a kind of file that is read",
  422: "That cannot be",
  429: "Too much at once",
  503: "Not now",
};

export function clearProblems(form) {
  put(at("error"));
  for (const node of form?.querySelectorAll("[aria-invalid]") ?? [])
    node.removeAttribute("aria-invalid");
  for (const node of form?.querySelectorAll(".wrong") ?? []) node.textContent = "";
}

/** Show a problem; `inputs` maps the API's field to the input's id where they differ. */
export function showProblem(error, form, inputs = {}) {
  if (!(error instanceof ApiProblem)) throw error;
  const loose = [];
  let first = null;
  for (const { field, message } of error.fields) {
    const root = field.split(/[.[]/)[0];
    const id = inputs[root] ?? root;
    const input = form?.querySelector(`#${CSS.escape(id)}`);
    const place = form?.querySelector(`#${CSS.escape(id)}-error`);
    if (!place) {
      loose.push(`${field}: ${message}`);
      continue;
    }
    place.textContent = message;
    input?.setAttribute("aria-invalid", "true");
    const fold = input?.closest("details");
    if (fold) fold.open = true;
    first ??= input;
  }
  const again = error.retryAfter ? h("p", {}, `Try again in ${error.retryAfter} s.`) : null;
  const isTold = loose.length
    ? h(
        "ul",
        {},
        loose.map((line) => h("li", {}, line)),
      )
    : h("p", {}, error.message);
  put(
    at("error"),
    h("div", { class: "alert" }, h("h2", {}, TITLES[error.status] ?? error.title), isTold, again),
  );
  if (first && first.offsetParent !== null) first.focus();
}
