// Numbers and times as people read them. A missing one is an en dash, never 0.

export const NONE = "–";
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const MINUS = (text) => text.replace("-", "\u2212");
const grouped = (value, digits) =>
  MINUS(
    value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }),
  );

export const fixed = (value, digits = 3) => (isNumber(value) ? grouped(value, digits) : NONE);

export function percent(value, digits = 1, sign = false) {
  if (!isNumber(value)) return NONE;
  const text = grouped(100 * value, digits);
  const isZero = Number((100 * value).toFixed(digits)) === 0;
  return `${sign && value > 0 && !isZero ? "+" : ""}${isZero ? text.replace("\u2212", "") : text}\u00a0%`;
}

/** Two shares with one unit: "−3.1 to +3.2 %". */
export const span = (low, high, digits = 1) =>
  `${percent(low, digits, true).replace("\u00a0%", "")} to ${percent(high, digits, true)}`;

export const capital = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}`;

/** A clause of the program as a sentence of the page. */
export function sentence(text) {
  const words = text.trim();
  return `${capital(words)}${/[.!?]$/.test(words) ? "" : "."}`;
}

/** Places after the point that tell prices around `level` apart. */
export const priceDigits = (level) =>
  isNumber(level) && level > 0 ? Math.min(12, Math.max(2, 3 - Math.floor(Math.log10(level)))) : 2;

export const price = (value, level) =>
  isNumber(value) ? grouped(value, priceDigits(level ?? value)) : NONE;

const SHORT = new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 2 });
export const compact = (value) => (isNumber(value) ? MINUS(SHORT.format(value)) : NONE);

/** Sizes of networks, all in one unit. */
export const millions = (number) => `${fixed(number / 1e6, number < 1e7 ? 2 : 1)}\u00a0M`;

export const count = (number, one, many = `${one}s`) =>
  `${number.toLocaleString("en-US")} ${number === 1 ? one : many}`;

/** "2024-06-18T09:35:00" as "2024-06-18 09:35". */
export const time = (text) => (text ? text.slice(0, 16).replace("T", " ") : NONE);

/** An instant of UTC in the reader's own clock. */
export function moment(text) {
  const date = text ? new Date(text) : null;
  if (!date || Number.isNaN(date.getTime())) return NONE;
  const two = (number) => String(number).padStart(2, "0");
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${two(date.getHours())}:${two(date.getMinutes())}`;
}

export function seconds(value) {
  if (!isNumber(value)) return "";
  if (value < 1.5) return "about a second";
  return value < 90
    ? `about ${Math.round(value)} seconds`
    : `about ${Math.round(value / 60)} minutes`;
}

export function bytes(value) {
  if (value < 1024) return `${value} bytes`;
  return value < 1024 ** 2
    ? `${(value / 1024).toFixed(0)} kB`
    : `${(value / 1024 ** 2).toFixed(1)} MB`;
}

/** Two-sided probability of a split at least as uneven as `wins` of `of` tosses of a fair coin. */
export function coin(wins, of) {
  const most = Math.max(wins, of - wins);
  let term = 0.5 ** of;
  let tail = 0;
  for (let k = 0; k <= of; k += 1) {
    if (k >= most) tail += term;
    term *= (of - k) / (k + 1);
  }
  return Math.min(1, 2 * tail);
}
