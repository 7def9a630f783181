// Plotly, loaded when the first figure is drawn, and one look for every figure.

let loading = null;

/** plotly.js brings the style of its maps as a <style> element, which the page's policy forbids and
 *  says so in the console. No map is drawn here: while the script runs, that element is an inert one. */
export function plotly() {
  loading ??= new Promise((resolve, reject) => {
    const create = document.createElement;
    document.createElement = function made(name, ...rest) {
      return create.call(this, name === "style" ? "template" : name, ...rest);
    };
    const script = create.call(document, "script");
    const end = (then) => () => {
      delete document.createElement;
      then(window.Plotly);
    };
    script.src = document.querySelector('meta[name="plotly"]').content;
    script.addEventListener("load", end(resolve));
    script.addEventListener(
      "error",
      end(() => reject(new Error("plotly.js did not load"))),
    );
    document.head.append(script);
  });
  return loading;
}

export const colour = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

export const SERIES = ["forecast", "realised", "third", "fourth", "fifth", "sixth"];
export const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];

/** "#0072b2" and .2 as rgba. */
export function faint(hex, alpha) {
  const [red, green, blue] = [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
  return `rgba(${red}, ${green}, ${blue}, ${alpha})`;
}

/** plotly reads a few tags in text: names are shown as they are written. */
export const plain = (text) =>
  String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

/** A name where there is little room. */
export const label = (name) =>
  plain(name.length > 28 ? `${name.slice(0, 18)}…${name.slice(-8)}` : name);

export const axis = (more = {}) => ({
  gridcolor: colour("grid"),
  linecolor: colour("line"),
  zerolinecolor: colour("line"),
  tickfont: { color: colour("quiet"), size: 12 },
  title: { font: { color: colour("quiet"), size: 12 }, standoff: 8, ...(more.title ?? {}) },
  automargin: true,
  ...Object.fromEntries(Object.entries(more).filter(([key]) => key !== "title")),
});

export const layout = (more = {}) => ({
  paper_bgcolor: "rgba(0,0,0,0)",
  plot_bgcolor: "rgba(0,0,0,0)",
  font: {
    family: 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif',
    size: 12,
    color: colour("ink"),
  },
  margin: { l: 8, r: 8, t: 8, b: 8 },
  showlegend: false,
  dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
  hoverlabel: {
    bgcolor: colour("panel"),
    bordercolor: colour("line"),
    font: { color: colour("ink"), size: 12 },
  },
  separators: ".,",
  ...more,
});

export const CONFIG = {
  displayModeBar: false,
  responsive: true,
  doubleClick: false,
  showTips: false,
};

const redraws = new Map();

/** Draw, and draw again when the reader's colour scheme changes. `make` returns [traces, layout]. */
export async function draw(place, make) {
  const Plotly = await plotly();
  if (!place.isConnected) return;
  const again = () => Plotly.react(place, ...make(place.clientWidth), CONFIG);
  redraws.set(place, again);
  await again();
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const [place, again] of redraws) {
    if (place.isConnected) again();
    else redraws.delete(place);
  }
});

/** Lines of several runs or methods over days: told apart by colour and dash. */
export function lines(
  curves,
  x,
  {
    yTitle,
    xTitle,
    format,
    percentAxis = false,
    category = true,
    zero = false,
    marks = false,
    fromZero = false,
  },
) {
  return (width) => [
    curves.map(({ name, values, quiet }, place) => ({
      x,
      y: values,
      name: label(name),
      mode: marks ? "lines+markers" : "lines",
      line: {
        color: quiet ? colour("quiet") : colour(SERIES[place % SERIES.length]),
        width: quiet ? 1.5 : 2,
        dash: quiet ? "dot" : DASHES[place % DASHES.length],
      },
      hovertemplate: `%{y:${format}}<extra>${label(name)}</extra>`,
    })),
    layout({
      hovermode: "x unified",
      showlegend: curves.length > 1,
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 12 } },
      xaxis: axis({
        type: category ? "category" : "-",
        nticks: Math.max(2, Math.floor(width / 110)),
        tickangle: 0,
        showgrid: false,
        title: { text: xTitle },
      }),
      yaxis: axis({
        title: { text: yTitle },
        tickformat: percentAxis ? ".1~%" : undefined,
        zeroline: zero,
        rangemode: fromZero ? "tozero" : "normal",
        zerolinecolor: colour("strong-line"),
      }),
    }),
  ];
}
