// One kept forecast: reopened, set against what came since, deleted.

import { call, get } from "./api.js";
import { at, confirmed, h } from "./dom.js";
import { showForecast } from "./forecast_view.js";
import { reconciled } from "./reconcile.js";
import { clearProblems, showProblem } from "./problems.js";

const place = at("forecast");
const { id } = place.dataset;

function actions(forecast, reshow) {
  const known = forecast.realised?.length ?? 0;
  const reconcile = h("button", { type: "button", class: "plain" }, "Reconcile with what came");
  reconcile.addEventListener("click", async () => {
    clearProblems();
    try {
      const next = await reconciled(forecast);
      if (next) await reshow(next);
    } catch (error) {
      showProblem(error);
    }
  });
  const remove = h("button", { type: "button", class: "danger" }, "Delete");
  remove.addEventListener("click", async () => {
    if (
      !(await confirmed(
        "Delete this forecast?",
        `The forecast of ${forecast.instrument} after ${forecast.last_timestamp} is removed from the store; that cannot be undone.`,
      ))
    )
      return;
    try {
      await call(`/forecasts/${forecast.id}`, { method: "DELETE" });
      location.assign("/kept");
    } catch (error) {
      showProblem(error);
    }
  });
  const address =
    forecast.source === "qlib" ? `/?instrument=${encodeURIComponent(forecast.instrument)}` : null;
  return [
    known < forecast.timestamps.length ? reconcile : null,
    address ? h("a", { class: "button plain", href: address }, "Forecast its newest bars") : null,
    remove,
  ];
}

try {
  await showForecast(place, await get(`/forecasts/${encodeURIComponent(id)}`), { actions });
} catch (error) {
  place.replaceChildren();
  place.removeAttribute("aria-busy");
  showProblem(error);
}
