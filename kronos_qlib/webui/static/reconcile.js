// Set a forecast against the bars that came since: those of the Qlib folder, or of a file.

import { call } from "./api.js";
import { h } from "./dom.js";

function chosenFile() {
  return new Promise((resolve) => {
    const input = h("input", {
      type: "file",
      accept: ".csv,.txt,.tsv,.parquet,.feather,.xlsx",
    });
    input.addEventListener("change", () => resolve(input.files[0] ?? null));
    input.addEventListener("cancel", () => resolve(null));
    input.click();
  });
}

/** The forecast with what came, or null if no file was chosen. */
export async function reconciled(forecast) {
  const path = `/forecasts/${forecast.id}/reconcile`;
  if (forecast.source === "qlib") return (await call(path, { method: "POST", json: {} })).body;
  const file = await chosenFile();
  if (!file) return null;
  const form = new FormData();
  form.append("file", file);
  return (await call(path, { method: "POST", form })).body;
}
