// Tables that are sorted by their heads.

import { caption, h, scrolling } from "./dom.js";

const NAMES = new Intl.Collator("en", { numeric: true });
/** Rows from which a table scrolls in a box of its own. */
const LONG = 25;

/**
 * A sortable table.
 * @param {Array} columns {key, title, text?, of?: row => value to sort by, show: row => Node or text, hint?}
 * @param {Array} rows
 * @param {object} how label, words above it, sort: {key, down}, most: rows shown at once
 * @returns {{node, show: (rows) => void}}
 */
export function sortable(columns, rows, { label, words, sort, most = 100 } = {}) {
  let order = sort ?? null;
  let current = rows;
  let shown = most;
  const body = h("tbody");
  const more = h("p", { class: "more" });
  const heads = columns.map((column) => {
    const name = column.of
      ? h(
          "button",
          { type: "button", class: "sort", title: column.hint, onclick: () => by(column) },
          column.title,
        )
      : column.title || h("span", { class: "visually-hidden" }, column.label ?? "Choose");
    return h("th", { scope: "col", class: column.text && "text" }, name);
  });
  const of = (column, row) => column.of(row);

  function by(column) {
    const isSame = order?.key === column.key;
    order = { key: column.key, down: isSame ? !order.down : !column.text };
    draw();
  }

  function compare(column, down) {
    return (one, other) => {
      const [a, b] = [of(column, one), of(column, other)];
      const [noA, noB] = [a, b].map(
        (value) => value === null || value === undefined || Number.isNaN(value),
      );
      if (noA || noB) return noA - noB; // what is missing stands last, whichever way
      const sign = typeof a === "string" ? NAMES.compare(a, b) : a - b;
      return down ? -sign : sign;
    };
  }

  function draw() {
    const column = order && columns.find(({ key }) => key === order.key);
    const sorted = column ? [...current].sort(compare(column, order.down)) : current;
    columns.forEach(({ key, of: sorts }, place) => {
      if (sorts)
        heads[place].setAttribute(
          "aria-sort",
          order?.key === key ? (order.down ? "descending" : "ascending") : "none",
        );
    });
    body.replaceChildren(
      ...sorted.slice(0, shown).map((row) => {
        const line = h(
          "tr",
          {},
          columns.map((column) =>
            h(
              column.head ? "th" : "td",
              {
                scope: column.head && "row",
                class:
                  [column.text && "text", column.head && "name", column.className]
                    .filter(Boolean)
                    .join(" ") || null,
              },
              column.show(row),
            ),
          ),
        );
        return line;
      }),
    );
    if (!sorted.length)
      body.append(
        h("tr", {}, h("td", { class: "text", colspan: columns.length }, "Nothing matches.")),
      );
    const rest = sorted.length - shown;
    more.hidden = rest <= 0;
    if (rest > 0) {
      more.replaceChildren(
        h(
          "button",
          { type: "button", class: "plain", onclick: () => ((shown += most), draw()) },
          `Show ${Math.min(rest, most)} more of ${rest.toLocaleString("en-US")}`,
        ),
      );
    }
  }

  draw();
  const table = h(
    "table",
    {},
    words ? caption(words) : null,
    h("thead", {}, h("tr", {}, heads)),
    body,
  );
  return {
    // The head of a long table stays in sight, and its box scrolls instead of the page.
    node: h("div", { class: rows.length > LONG && "long" }, scrolling(table, label), more),
    show(next) {
      current = next;
      shown = most;
      draw();
    },
  };
}
