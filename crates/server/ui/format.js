// Numbers, durations and times as people read them.
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

export const unknown = "–";

export const count = (number) => (number === null || number === undefined ? unknown : whole.format(number));

export function perSecond(number) {
  if (number === null || number === undefined) return unknown;
  return `${number === 0 ? "0" : short.format(number)}/s`;
}

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

/** Two units at most: `1 h 4 min`. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return unknown;
  if (seconds < 1) return `${Math.max(0, Math.round(seconds * 1000))} ms`;
  if (seconds < 10) return `${short.format(seconds)} s`;
  const units = [
    ["d", 86400],
    ["h", 3600],
    ["min", 60],
    ["s", 1],
  ];
  const at = units.findIndex(([, length]) => seconds >= length);
  const [unit, length] = units[at];
  const rest = units[at + 1];
  const text = `${Math.floor(seconds / length)} ${unit}`;
  const more = rest ? Math.floor((seconds % length) / rest[1]) : 0;
  return more > 0 ? `${text} ${more} ${rest[0]}` : text;
}

/** Up to a day relative, then the date. */
export function ago(text) {
  const at = Date.parse(text);
  if (Number.isNaN(at)) return text || unknown;
  const seconds = (Date.now() - at) / 1000;
  if (seconds < -1) return `in ${duration(-seconds)}`;
  if (seconds < 1) return "now";
  if (seconds < 86400) return `${duration(seconds)} ago`;
  return new Date(at).toISOString().slice(0, 16).replace("T", " ");
}

export function bytes(number) {
  for (const [unit, size] of [
    ["GiB", 1 << 30],
    ["MiB", 1 << 20],
    ["KiB", 1 << 10],
  ]) {
    if (number >= size) return `${short.format(number / size)} ${unit}`;
  }
  return `${number} B`;
}

/** A reason without what differs between messages. */
export const kindOf = (reason) =>
  reason
    .replace(/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}/gi, "#")
    .replace(/"[^"]*"|'[^']*'/g, "#")
    .replace(/\b0x[0-9a-f]+\b|\b[0-9a-f]{12,}\b/gi, "#")
    .replace(/(?<![\w.])\d+(?:\.\d+)?(?![\w])/g, (number, at, text) => (/(?:HTTP|answered|status|exit(?: status)?|code) $/i.test(text.slice(0, at)) ? number : "#"));
