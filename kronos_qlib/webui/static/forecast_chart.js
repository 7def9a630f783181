// Candles, volume, bands, and what came. Bars stand side by side, one step each: nights, weekends
// and holidays take no room.

import { CONFIG, axis, colour, draw, faint, layout, plain, plotly } from "./chart.js";
import { h } from "./dom.js";
import { NONE, compact, percent, price, time } from "./format.js";

export const BANDS = [
  { level: 0.9, low: "0.05", high: "0.95", alpha: 0.16 },
  { level: 0.8, low: "0.1", high: "0.9", alpha: 0.18 },
  { level: 0.5, low: "0.25", high: "0.75", alpha: 0.26 },
];

const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/** Text under the axis: as short as it can be, with the larger unit where it changes. */
function ticks(stamps, from, to, width, intraday) {
  const first = Math.max(0, Math.ceil(from));
  const last = Math.min(stamps.length - 1, Math.floor(to));
  const most = Math.max(2, Math.floor(width / 84));
  const step = Math.max(1, Math.ceil((last - first + 1) / most));
  const values = [];
  const texts = [];
  let before = "";
  // The first one stands where its text has room.
  const room = Math.ceil((30 * (to - from)) / width);
  for (let place = first + Math.min(room, step); place <= last; place += step) {
    const [day, clock = ""] = stamps[place].split("T");
    const [year, month, date] = day.split("-");
    const near = `${Number(date)} ${MONTHS[month - 1]}`;
    values.push(place);
    if (intraday)
      texts.push(before === day ? clock.slice(0, 5) : `${clock.slice(0, 5)}<br>${near} ${year}`);
    else texts.push(before === year ? near : `${near}<br>${year}`);
    before = intraday ? day : year;
  }
  return { tickmode: "array", tickvals: values, ticktext: texts };
}

export class ForecastChart {
  /** @param {object} forecast as GET /forecasts/{id} answers; @param {HTMLElement} place for it */
  constructor(forecast, place) {
    this.forecast = forecast;
    this.seen = forecast.history;
    this.stamps = [...this.seen.map((bar) => bar.timestamp), ...forecast.timestamps];
    this.start = this.seen.length;
    this.log = false;
    this.hasPaths = false;
    this.cursor = null;
    this.readout = h("p", { class: "readout", "aria-live": "polite" });
    this.node = h("div", {
      class: "chart tall",
      tabindex: "0",
      role: "group",
      "aria-roledescription": "chart",
      "aria-label": `Candles of ${forecast.instrument} and the forecast of ${forecast.timestamps.length} bars. Left and right arrows read bar by bar, plus and minus zoom, 0 shows all.`,
    });
    place.append(this.readout, this.node);
    this.show(90);
    this.node.addEventListener("keydown", (event) => this.key(event));
    this.read(null);
  }

  /** Draw; the place is in the page by now. */
  async begin() {
    this.show(Math.max(30, Math.min(90, Math.floor(this.node.clientWidth / 9))));
    await draw(this.node, () => this.figure());
    this.node.on("plotly_hover", ({ xvals, points }) =>
      this.read(Math.round(xvals?.[0] ?? points[0].x)),
    );
    this.node.on("plotly_unhover", () => this.read(null));
    this.node.on("plotly_relayout", (change) => {
      const from = change["xaxis.range[0]"] ?? change["xaxis.range"]?.[0];
      const to = change["xaxis.range[1]"] ?? change["xaxis.range"]?.[1];
      if (from !== undefined && to !== undefined) this.move(from, to);
      else if (change.autosize) this.fit();
    });
    this.node.on("plotly_doubleclick", () => this.move(-0.5, this.stamps.length - 0.5));
    new ResizeObserver(() => this.fit()).observe(this.node);
  }

  /** Show the newest `bars` bars and the forecast; all without a number. */
  show(bars) {
    this.range = [bars ? Math.max(-0.5, this.start - bars - 0.5) : -0.5, this.stamps.length - 0.5];
  }

  async move(from, to) {
    const width = Math.max(4, Math.min(to - from, this.stamps.length));
    const start = Math.max(-0.5, Math.min(from, this.stamps.length - 0.5 - width));
    const next = [start, start + width];
    if (this.range.every((value, place) => Math.abs(value - next[place]) < 1e-9) && this.isFitted)
      return;
    this.range = next;
    await this.fit();
  }

  zoom(factor) {
    const [from, to] = this.range;
    const middle = this.cursor ?? Math.min(to, Math.max(from, (from + to) / 2));
    return this.move(middle - (middle - from) * factor, middle + (to - middle) * factor);
  }

  pan(share) {
    const by = share * (this.range[1] - this.range[0]);
    return this.move(this.range[0] + by, this.range[1] + by);
  }

  async fit() {
    const Plotly = await plotly();
    if (!this.node.isConnected || !this.node.layout) return;
    this.isFitted = true;
    const axes = this.axes();
    const now = JSON.stringify([
      this.range,
      axes.yaxis.range,
      axes.yaxis.type,
      axes.xaxis.ticktext,
    ]);
    if (now === this.drawn) return;
    this.drawn = now;
    await Plotly.relayout(this.node, axes);
  }

  key(event) {
    const step = event.shiftKey ? 10 : 1;
    const act = {
      ArrowLeft: () => this.step(-step),
      ArrowRight: () => this.step(step),
      Home: () => this.step(-Infinity),
      End: () => this.step(Infinity),
      "+": () => this.zoom(0.7),
      "=": () => this.zoom(0.7),
      "-": () => this.zoom(1 / 0.7),
      0: () => this.move(-0.5, this.stamps.length - 0.5),
      Escape: () => this.read(null),
    }[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  }

  step(by) {
    const from = this.cursor ?? this.start - 1;
    const to = Math.max(0, Math.min(this.stamps.length - 1, from + by));
    this.read(to);
    this.mark(to);
    if (to < this.range[0]) this.move(to - 1.5, to - 1.5 + this.range[1] - this.range[0]);
    if (to > this.range[1]) this.move(to + 1.5 - (this.range[1] - this.range[0]), to + 1.5);
  }

  async mark(place) {
    const Plotly = await plotly();
    await Plotly.relayout(this.node, { shapes: [...this.shapes(), this.line(place, "quiet")] });
  }

  line(x, name, dash = "solid") {
    return {
      type: "line",
      xref: "x",
      yref: "paper",
      x0: x,
      x1: x,
      y0: 0,
      y1: 1,
      layer: "below",
      line: { color: colour(name), width: 1, dash },
    };
  }

  shapes() {
    return [this.line(this.start - 0.5, "strong-line", "dot")];
  }

  /** The words above the chart: the bar under the pointer, or what there is to do. */
  read(place) {
    if (place !== null && (place < 0 || place >= this.stamps.length)) return;
    this.cursor = place;
    const pieces = [];
    const say = (name, value) => pieces.push(h("span", {}, `${name} `, h("b", {}, value)));
    const level = this.forecast.last_close;
    const change = (value) => percent(value / level - 1, 1, true);
    if (place === null) {
      pieces.push(
        h(
          "span",
          {},
          `Prices and volume in the units of the bars; changes against the last close seen, ${price(level)} on ${time(this.forecast.last_timestamp)}.`,
        ),
      );
    } else if (place < this.start) {
      const bar = this.seen[place];
      say("", time(bar.timestamp));
      for (const key of ["open", "high", "low", "close"]) say(key, price(bar[key], level));
      say("volume", compact(bar.volume));
      const before = this.seen[place - 1];
      if (before) say("change", percent(bar.close / before.close - 1, 2, true));
    } else {
      const ahead = place - this.start;
      const of = (key) => this.forecast.quantiles.close[key]?.[ahead];
      say("", time(this.stamps[place]));
      say("median", `${price(of("0.5"), level)} (${change(of("0.5"))})`);
      for (const { level: share, low, high } of [...BANDS].reverse()) {
        if (of(low) !== undefined)
          say(`${share * 100} %`, `${price(of(low), level)} to ${price(of(high), level)}`);
      }
      say("up", percent(this.forecast.prob_up[ahead], 0));
      const bar = this.forecast.realised?.[ahead];
      if (bar) say("came", `${price(bar.close, level)} (${change(bar.close)})`);
    }
    this.readout.replaceChildren(...pieces);
  }

  axes() {
    const { forecast, seen, start } = this;
    const width = this.node.clientWidth || 800;
    const [from, to] = this.range;
    const shown = [];
    const volumes = [0];
    for (
      let place = Math.max(0, Math.floor(from));
      place <= Math.min(this.stamps.length - 1, to);
      place += 1
    ) {
      if (place < start) {
        shown.push(seen[place].low, seen[place].high);
        volumes.push(seen[place].volume);
        continue;
      }
      const ahead = place - start;
      shown.push(forecast.quantiles.close["0.05"][ahead], forecast.quantiles.close["0.95"][ahead]);
      volumes.push(forecast.quantiles.volume?.["0.95"]?.[ahead] ?? 0);
      if (this.hasPaths) shown.push(...forecast.paths.map((path) => path[ahead]));
      const bar = forecast.realised?.[ahead];
      if (bar) {
        shown.push(bar.low, bar.high);
        volumes.push(bar.volume);
      }
    }
    const known = shown.filter((value) => Number.isFinite(value) && (!this.log || value > 0));
    let [low, high] = [Math.min(...known), Math.max(...known)];
    if (this.log) [low, high] = [Math.log10(low), Math.log10(high)];
    const room = 0.06 * (high - low || Math.abs(high) || 1);
    // What came lies on an axis of its own above the bands, which else would tint it.
    const over = {
      overlaying: "y",
      side: "right",
      type: this.log ? "log" : "linear",
      range: [low - room, high + room],
      visible: false,
      fixedrange: true,
    };
    return {
      yaxis3: over,
      xaxis: axis({
        range: [...this.range],
        showgrid: false,
        zeroline: false,
        anchor: "y2",
        automargin: false,
        rangeslider: { visible: false },
        showspikes: true,
        spikemode: "across",
        spikethickness: 1,
        spikedash: "solid",
        spikecolor: colour("quiet"),
        spikesnap: "hovered data",
        ...ticks(this.stamps, from, to, width, forecast.is_intraday),
      }),
      yaxis: axis({
        domain: [0.24, 1],
        side: "right",
        type: this.log ? "log" : "linear",
        range: [low - room, high + room],
        zeroline: false,
        fixedrange: true,
        automargin: false,
        tickformat: this.log ? undefined : "~g",
        hoverformat: "~g",
        nticks: 7,
        ...(this.log ? { dtick: undefined } : {}),
      }),
      yaxis2: axis({
        domain: [0, 0.17],
        side: "right",
        range: [0, 1.05 * Math.max(...volumes) || 1],
        fixedrange: true,
        zeroline: false,
        automargin: false,
        nticks: 3,
        tickformat: "~s",
      }),
    };
  }

  figure() {
    const { forecast, seen, start } = this;
    const [ink, blue, red, panel] = ["ink", "forecast", "realised", "panel"].map(colour);
    const places = (bars, from) => bars.map((_, index) => from + index);
    const column = (bars, key) => bars.map((bar) => bar[key]);
    const candles = (bars, from, colouring, name) => ({
      type: "candlestick",
      x: places(bars, from),
      name,
      hoverinfo: "none",
      whiskerwidth: 0,
      ...Object.fromEntries(
        ["open", "high", "low", "close"].map((key) => [key, column(bars, key)]),
      ),
      increasing: { line: { color: colouring, width: 1.2 }, fillcolor: panel },
      decreasing: { line: { color: colouring, width: 1.2 }, fillcolor: colouring },
    });
    // The fan opens at the last close seen, which is known.
    const x = [start - 1, ...places(forecast.timestamps, start)];
    const fan = (key) => [forecast.last_close, ...forecast.quantiles.close[key]];
    const traces = [candles(seen, 0, ink, "seen")];
    for (const { level, low, high, alpha } of BANDS) {
      if (!forecast.quantiles.close[low]) continue;
      const edge = { x, mode: "lines", line: { width: 0, color: blue }, hoverinfo: "none" };
      traces.push(
        { ...edge, y: fan(low), name: `${level * 100} % low` },
        {
          ...edge,
          y: fan(high),
          fill: "tonexty",
          fillcolor: faint(blue, alpha),
          name: `${level * 100} % of the paths`,
        },
      );
    }
    if (this.hasPaths) {
      traces.push({
        x: forecast.paths.flatMap(() => [...x, null]),
        y: forecast.paths.flatMap((path) => [forecast.last_close, ...path, null]),
        mode: "lines",
        line: { width: 1, color: faint(blue, 0.55) },
        hoverinfo: "none",
        name: "single paths",
      });
    }
    traces.push({
      x,
      y: fan("0.5"),
      mode: "lines",
      line: { width: 2, color: blue },
      hoverinfo: "none",
      name: "median",
    });
    const realised = forecast.realised ?? [];
    if (realised.length)
      traces.push({ ...candles(realised, start, red, "what came"), yaxis: "y3" });
    const volume = (bars, from, colouring, opacity) => ({
      type: "bar",
      x: places(bars, from),
      y: column(bars, "volume"),
      yaxis: "y2",
      marker: { color: colouring, opacity },
      width: 0.7,
      hoverinfo: "none",
    });
    traces.push(volume(seen, 0, ink, 0.45));
    const ahead = forecast.quantiles.volume;
    if (ahead?.["0.5"]) {
      traces.push({
        type: "bar",
        x: places(forecast.timestamps, start),
        y: ahead["0.5"],
        yaxis: "y2",
        width: 0.7,
        hoverinfo: "none",
        marker: { color: faint(blue, 0.45) },
        error_y: {
          type: "data",
          symmetric: false,
          array: ahead["0.95"].map((top, index) => top - ahead["0.5"][index]),
          arrayminus: ahead["0.05"].map((bottom, index) => ahead["0.5"][index] - bottom),
          color: faint(blue, 0.7),
          thickness: 1,
          width: 0,
        },
      });
    }
    if (realised.length) traces.push({ ...volume(realised, start, red, 0.9), width: 0.3 });
    return [
      traces,
      layout({
        ...this.axes(),
        barmode: "overlay",
        hovermode: "x",
        hoverdistance: -1,
        bargap: 0.3,
        margin: { l: 10, r: 62, t: 6, b: 38 },
        shapes: this.shapes(),
      }),
    ];
  }

  async redraw() {
    const Plotly = await plotly();
    this.drawn = null;
    await Plotly.react(this.node, ...this.figure(), CONFIG);
  }

  /** A picture of what is shown, on the panel's ground, with a title. */
  async picture() {
    const Plotly = await plotly();
    const { forecast } = this;
    const [traces, frame] = this.figure();
    const words = `${forecast.instrument}: ${forecast.timestamps.length} bars after ${time(forecast.last_timestamp)}`;
    const under = `${forecast.checkpoint.name}, ${forecast.calibrated ? "calibrated" : "as drawn"}; median, bands of 50, 80 and 90 % of the paths`;
    return Plotly.toImage(
      {
        data: traces,
        layout: {
          ...frame,
          paper_bgcolor: colour("panel"),
          plot_bgcolor: colour("panel"),
          margin: { l: 24, r: 70, t: 64, b: 48 },
          title: {
            text: plain(words),
            subtitle: { text: plain(under), font: { size: 13, color: colour("quiet") } },
            x: 0.02,
            xanchor: "left",
            font: { size: 17, color: colour("ink") },
          },
        },
      },
      { format: "png", width: 1200, height: 640, scale: 2 },
    );
  }
}

/** The forecast as a table of numbers: what the CSV holds. */
export function figures(forecast) {
  const levels = Object.keys(forecast.quantiles.close).sort((one, other) => one - other);
  const others = Object.keys(forecast.quantiles).filter((key) => key !== "close");
  const head = [
    "timestamp",
    ...levels.map((level) => `close_${level}`),
    "prob_up",
    ...others.map((key) => `${key}_0.5`),
    "realised_open",
    "realised_high",
    "realised_low",
    "realised_close",
    "realised_volume",
  ];
  const rows = forecast.timestamps.map((stamp, ahead) => {
    const bar = forecast.realised?.[ahead];
    return [
      stamp,
      ...levels.map((level) => forecast.quantiles.close[level][ahead]),
      forecast.prob_up[ahead],
      ...others.map((key) => forecast.quantiles[key]["0.5"][ahead]),
      ...["open", "high", "low", "close", "volume"].map((key) => bar?.[key] ?? ""),
    ];
  });
  return [head, ...rows];
}

export const csv = (forecast) =>
  `${figures(forecast)
    .map((row) => row.join(","))
    .join("\n")}\n`;

export { NONE };
