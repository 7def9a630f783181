// The page's own API. What goes wrong is a Problem in words (RFC 9457), with the field it is about.

export class ApiProblem extends Error {
  constructor(problem) {
    super(problem.detail || problem.title || "The request failed.");
    this.title = problem.title ?? "That did not work";
    this.status = problem.status ?? 0;
    this.retryAfter = problem.retryAfter ?? null;
    this.fields = problem.errors?.length
      ? problem.errors
      : problem.field
        ? [{ field: problem.field, message: problem.detail }]
        : [];
  }
}

const meta = (name) => document.querySelector(`meta[name="${name}"]`)?.content;

export async function call(path, { method = "GET", json, form, keepalive = false } = {}) {
  const headers = { Accept: "application/json" };
  if (method !== "GET" && meta("csrf")) headers["X-CSRF-Token"] = meta("csrf");
  if (json !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method,
      headers,
      body: json !== undefined ? JSON.stringify(json) : form,
      keepalive,
      credentials: "same-origin",
    });
  } catch {
    throw new ApiProblem({
      title: "No answer",
      detail: "The server of this page does not answer. Is `kronos-qlib web` still running?",
    });
  }
  if (response.status === 204) return { status: 204, body: null };
  let body;
  try {
    body = await response.json();
  } catch {
    throw new ApiProblem({
      title: "An answer that is no JSON",
      status: response.status,
      detail: `${method} ${path} answered ${response.status}.`,
    });
  }
  if (!response.ok)
    throw new ApiProblem({
      ...body,
      status: response.status,
      retryAfter: Number(response.headers.get("Retry-After")) || null,
    });
  return { status: response.status, body };
}

export const get = async (path) => (await call(path)).body;

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

export class Cancelled extends Error {}

/** Poll a job until it ends; `seen` gets every state. Returns the finished job. */
export async function finished(job, seen) {
  let wait = 120;
  for (;;) {
    seen?.(job);
    if (job.state === "done") return job;
    if (job.state === "cancelled") throw new Cancelled(job.label);
    if (job.state === "failed")
      throw new ApiProblem(
        job.error ?? { title: "It failed", status: 500, detail: `${job.label} failed.` },
      );
    await pause(wait);
    wait = Math.min(wait * 1.3, 800);
    job = await get(job.status_url);
  }
}

/** The answer itself, also where it takes a job to make it. */
export async function settled(answer, seen) {
  if (answer.status !== 202) return answer.body;
  const job = await finished(answer.body, seen);
  // An answer that was forgotten meanwhile is a job once more.
  return job.result_url ? settled(await call(job.result_url), seen) : job;
}
