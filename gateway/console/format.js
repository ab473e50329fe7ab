// Numbers and moments as people read them. Pure.

/** 0.42 ms, 12 ms, 1.24 s, 3 m 05 s, 5 m, 2 h 10 m, 3 d 4 h. */
export function duration(ms) {
  if (ms === null || ms === undefined || Number.isNaN(ms)) return "–";
  if (ms < 0) ms = 0;
  if (ms < 1) return ms === 0 ? "0 ms" : `${ms.toFixed(2)} ms`;
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  const s = ms / 1e3;
  if (s < 59.995) return `${s < 9.995 ? s.toFixed(2) : s.toFixed(1)} s`;
  const total = Math.round(s);
  const [minutes, hours] = [Math.floor(total / 60), Math.floor(total / 3_600)];
  const both = (whole, rest) => (rest ? `${whole} ${rest}` : whole);
  if (total < 3_600) return both(`${minutes} m`, total % 60 > 0 && `${pad(total % 60)} s`);
  if (total < 86_400) return both(`${hours} h`, minutes % 60 > 0 && `${pad(minutes % 60)} m`);
  return both(`${Math.floor(hours / 24)} d`, hours % 24 > 0 && `${hours % 24} h`);
}

/** 512 B, 3.4 KiB, 1.2 GiB. */
export function bytes(number) {
  if (number === null || number === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let [value, unit] = [number, 0];
  while (value >= 1_000 && unit < units.length - 1) [value, unit] = [value / 1_024, unit + 1];
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** 1,234,567 */
export function count(number) {
  return number === null || number === undefined ? "–" : number.toLocaleString("en-US");
}

/** 14:03:27, of this machine's zone. */
export function clock(at, millis = false) {
  const date = new Date(at);
  if (Number.isNaN(date.getTime())) return "–";
  const text = [date.getHours(), date.getMinutes(), date.getSeconds()].map(pad).join(":");
  return millis ? `${text}.${String(date.getMilliseconds()).padStart(3, "0")}` : text;
}

/** 30 Nov 14:03:27; only the time where it was today. */
export function moment(at, now = Date.now()) {
  const date = new Date(at);
  if (Number.isNaN(date.getTime())) return "–";
  if (date.toDateString() === new Date(now).toDateString()) return clock(date);
  const day = date.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
  return `${day} ${clock(date).slice(0, 5)}`;
}

/** just now, 12 s ago, 3 min ago, 2 h ago, 5 d ago. */
export function ago(at, now = Date.now()) {
  const s = Math.max(0, (now - new Date(at).getTime()) / 1e3);
  if (Number.isNaN(s)) return "–";
  if (s < 2) return "just now";
  if (s < 60) return `${Math.floor(s)} s ago`;
  if (s < 3_600) return `${Math.floor(s / 60)} min ago`;
  if (s < 86_400) return `${Math.floor(s / 3_600)} h ago`;
  return `${Math.floor(s / 86_400)} d ago`;
}

/** The part of an id by which people tell it from others: the first digits of a UUIDv7 are the time. */
export function short(id) {
  return id ? id.slice(-8) : "–";
}

/** budget_exhausted: budget exhausted. */
export function words(name) {
  return (name ?? "").replaceAll("_", " ");
}

/** One line of a text, shortened. */
export function line(text, max = 160) {
  const flat = (text ?? "").replace(/\s+/g, " ").trim();
  return flat.length > max ? `${flat.slice(0, max - 1)}…` : flat;
}

/** 1 message, 2 messages. */
export function plural(number, noun) {
  return `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
}

function pad(number) {
  return String(number).padStart(2, "0");
}
