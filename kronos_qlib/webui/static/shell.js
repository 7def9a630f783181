// On every page: whether the model is there, and for whom it works.

import { ApiProblem, get } from "./api.js";
import { at } from "./dom.js";
import { count } from "./format.js";
import { giveWay } from "./jobs.js";

const WORDS = {
  loading: "The model is loading …",
  ready: "Ready",
  failed: "The model did not load",
};

async function tell() {
  const place = at("health");
  let again = 30_000;
  try {
    const health = await get("/health");
    const busy = health.running + health.queued;
    place.textContent =
      health.model === "ready" && busy ? `Computing, ${count(busy, "job")}` : WORDS[health.model];
    place.className = `health ${health.model}`;
    if (health.model === "loading") again = 700;
    else if (busy) again = 2000;
  } catch {
    place.textContent = "No answer from the server";
    place.className = "health failed";
  }
  setTimeout(tell, again);
}

tell();
giveWay(new URLSearchParams(location.search).get("forecast") ?? at("forecast")?.dataset.id).catch(
  (error) => {
    if (!(error instanceof ApiProblem)) throw error;
  },
);
