// Elements from data. Text is always a text node and never markup: names of files and instruments
// are other people's words.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(
    ...children
      .flat(Infinity)
      .filter((child) => child !== null && child !== undefined && child !== false),
  );
  return node;
}

export const h = (tag, attributes, ...children) =>
  fill(document.createElement(tag), attributes, children);

export const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

export const at = (id) => document.getElementById(id);

export function put(place, ...children) {
  place.replaceChildren();
  fill(place, {}, children);
  place.removeAttribute("aria-busy");
}

/** Words above a table: they stay in sight while it scrolls to the side. */
export const caption = (text) => h("caption", {}, h("span", {}, text));

/** A table that scrolls in its own box; the box takes the focus so that keys can scroll it. */
export function scrolling(table, label) {
  const box = h(
    "div",
    { class: "scroll", role: "region", "aria-label": label, tabindex: "0" },
    table,
  );
  return box;
}

export function empty(title, ...words) {
  return h(
    "div",
    { class: "empty panel" },
    h("h2", {}, title),
    words.map((word) => (word instanceof Node ? word : h("p", {}, word))),
  );
}

/** Ask before something is lost. Resolves to true for yes. */
export function confirmed(title, text, yes = "Delete") {
  const dialog = at("confirm");
  at("confirm-title").textContent = title;
  at("confirm-text").textContent = text;
  at("confirm-yes").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) =>
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }),
  );
}

/** Hand a file to the reader of the page. */
export function download(name, content, type) {
  const url =
    content instanceof Blob
      ? URL.createObjectURL(content)
      : URL.createObjectURL(new Blob([content], { type }));
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** A name that every file system takes. */
export const fileName = (...parts) =>
  parts
    .join("_")
    .replace(/[^A-Za-z0-9._-]+/g, "-")
    .slice(0, 120);
