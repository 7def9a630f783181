// What is computed or waits: a line each, with progress and a button that cancels it.

import { Cancelled, call, settled } from "./api.js";
import { at, h } from "./dom.js";
import { capital, percent, seconds } from "./format.js";

function words(job) {
  if (job.state === "queued")
    return job.position ? `waits, number ${job.position} in the queue` : "waits for its turn";
  if (job.state === "running")
    return [percent(job.progress, 0), seconds(job.eta) && `${seconds(job.eta)} left`]
      .filter(Boolean)
      .join(", ");
  return job.state;
}

/** Follow an answer to its end. Returns what it made, or null if it was cancelled. */
export async function follow(answer, { place = at("jobs"), onJob } = {}) {
  if (answer.status !== 202) return answer.body;
  const state = h("span", { class: "quiet" });
  const bar = h("progress", {
    max: "1",
    value: "0",
    "aria-label": `Progress of ${answer.body.label}`,
  });
  const cancel = h("button", { type: "button", class: "plain small" }, "Cancel");
  const line = h(
    "div",
    { class: "panel job" },
    h("p", {}, h("b", {}, capital(answer.body.label)), " ", state),
    cancel,
    bar,
  );
  cancel.addEventListener("click", async () => {
    cancel.disabled = true;
    state.textContent = "is being cancelled …";
    await call(answer.body.status_url, { method: "DELETE" }).catch(() => {});
  });
  place.append(line);
  let said = "";
  try {
    return await settled(answer, (job) => {
      onJob?.(job);
      bar.value = job.state === "queued" ? 0 : job.progress;
      // Said aloud at most every tenth: a reader of the screen is not told each percent.
      const key = `${job.state} ${job.position} ${Math.floor(job.progress * 10)}`;
      if (key !== said && !cancel.disabled) state.textContent = words(job);
      said = key;
    });
  } catch (error) {
    if (error instanceof Cancelled) return null;
    throw error;
  } finally {
    line.remove();
  }
}
