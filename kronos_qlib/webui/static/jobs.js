// What is computed or waits: a line each, with progress and a button that cancels it. What this tab
// asked for is remembered until it ends, so that a page that is loaded again takes it up.

import { ApiProblem, Cancelled, call, get, settled } from "./api.js";
import { at, h } from "./dom.js";
import { capital, percent, seconds } from "./format.js";

const ASKED = "jobs";
/** Jobs of other tabs and programs that have a line. */
const MOST_OTHERS = 5;

/** Kinds that need the model. That one is loaded is told by the list of checkpoints. */
const BUSY = ["forecast", "track_record", "universe", "why"];

const hasEnded = (job) => !["queued", "running"].includes(job.state);
const hasLine = (job) => document.querySelector(`[data-job="${job.job}"]`) !== null;
const asked = () => JSON.parse(sessionStorage.getItem(ASKED) ?? "[]");
const remember = (ids) => sessionStorage.setItem(ASKED, JSON.stringify(ids.slice(-50)));
const forget = (id) => remember(asked().filter((one) => one !== id));

function words(job) {
  if (job.state === "queued")
    return job.position ? `waits, number ${job.position} in the queue` : "waits for its turn";
  if (job.state === "running")
    return [percent(job.progress, 0), seconds(job.eta) && `${seconds(job.eta)} left`]
      .filter(Boolean)
      .join(", ");
  return job.state;
}

/** Follow an answer to its end. Returns what it made, or null if it was cancelled. A job that is not
 *  this tab's `isOwn` is followed and not remembered. */
export async function follow(answer, { place = at("jobs"), onJob, isOwn = true } = {}) {
  if (answer.status !== 202) return answer.body;
  const { job: id, label, status_url: address } = answer.body;
  const state = h("span", { class: "quiet" });
  const bar = h("progress", { max: "1", value: "0", "aria-label": `Progress of ${label}` });
  const cancel = h("button", { type: "button", class: "plain small" }, "Cancel");
  const line = h(
    "div",
    { class: "panel job", "data-job": id },
    h("p", {}, h("b", {}, capital(label)), " ", state),
    cancel,
    bar,
  );
  cancel.addEventListener("click", async () => {
    cancel.disabled = true;
    state.textContent = "is being cancelled …";
    await call(address, { method: "DELETE" }).catch(() => {});
  });
  place.append(line);
  if (isOwn && !asked().includes(id)) remember([...asked(), id]);
  let said = "";
  try {
    const made = await settled(answer, (job) => {
      onJob?.(job);
      bar.value = job.state === "queued" ? 0 : job.progress;
      // Said aloud at most every tenth: a reader of the screen is not told each percent.
      const key = `${job.state} ${job.position} ${Math.floor(job.progress * 10)}`;
      if (key !== said && !cancel.disabled) state.textContent = words(job);
      said = key;
    });
    forget(id);
    return made;
  } catch (error) {
    // Without an answer it may still be at work: a page that is being left has none.
    if (!(error instanceof ApiProblem && error.status === 0)) forget(id);
    if (error instanceof Cancelled) return null;
    throw error;
  } finally {
    line.remove();
  }
}

/** Jobs to take up: `mine`, of these kinds, that this tab asked for before it was loaded again, also
 *  where they have ended meanwhile; and `others` that keep the model busy. */
export async function running(...kinds) {
  const own = asked();
  const { jobs } = await get("/jobs");
  for (const id of own.filter((one) => jobs.every((job) => job.job !== one))) {
    try {
      jobs.push(await get(`/jobs/${id}`));
    } catch (error) {
      if (!(error instanceof ApiProblem)) throw error;
      if (error.status) forget(id); // the program was started anew
    }
  }
  const found = jobs.filter((job) => !hasLine(job));
  const mine = found.filter((job) => own.includes(job.job) && kinds.includes(job.kind));
  const others = found.filter(
    (job) => !mine.includes(job) && BUSY.includes(job.kind) && !hasEnded(job),
  );
  return { mine, others: others.slice(0, MOST_OTHERS) };
}

/** Past windows that this tab wanted measured, of a forecast that it shows no more, give way: the
 *  model has one worker. */
export async function giveWay(shown) {
  if (!asked().length) return;
  const { mine } = await running("track_record");
  for (const job of mine.filter((one) => one.about.forecast !== shown)) {
    forget(job.job);
    if (!hasEnded(job)) await call(job.status_url, { method: "DELETE" });
  }
}

/** A job as the answer that `follow` takes. */
export const answered = (job) => ({ status: 202, body: job });
