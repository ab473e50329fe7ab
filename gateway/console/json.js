// JSON as a tree that folds: what is small stands on one line, what is large opens on demand.

import { h } from "./dom.js";

/** Characters up to which a list or an object stands on one line. */
const LINE = 72;
/** Entries shown at once of a long list. */
const SHOWN = 200;
/** Characters shown at once of a long text. */
const TEXT = 4_000;

/** A value as a tree, open down to `depth`. */
export function tree(value, depth = 2) {
  return h("div.json", {}, node(null, value, depth));
}

function node(key, value, depth) {
  const name = key === null ? null : [h("span.key", {}, key), h("span.mark", {}, ": ")];
  if (value === null || typeof value !== "object") return h("div.leaf", {}, name, scalar(value));
  const entries = Object.entries(value);
  const [open, close] = Array.isArray(value) ? ["[", "]"] : ["{", "}"];
  if (entries.length === 0) return h("div.leaf", {}, name, h("span.mark", {}, open + close));
  const flat = entries.every(([, v]) => v === null || typeof v !== "object") ? JSON.stringify(value) : null;
  if (flat && flat.length <= LINE) return h("div.leaf", {}, name, inline(value));
  const size = `${entries.length} ${Array.isArray(value) ? "items" : "fields"}`;
  const body = h("div.branch");
  const details = h("details", { open: depth > 0 },
    h("summary", {}, name, h("span.mark", {}, open), h("span.size", {}, ` ${size} `), h("span.mark.closed", {}, close)),
    body, h("span.mark.end", {}, close));
  const build = () => {
    if (body.firstChild || !details.open) return;
    const shown = entries.slice(0, SHOWN).map(([k, v]) => node(Array.isArray(value) ? null : k, v, depth - 1));
    body.append(...shown);
    if (entries.length > SHOWN) body.append(h("div.size", {}, `and ${entries.length - SHOWN} more`));
  };
  details.addEventListener("toggle", build);
  build();
  return details;
}

function inline(value) {
  if (Array.isArray(value)) return list("[", value.map((v) => [scalar(v)]), "]");
  return list(
    "{",
    Object.entries(value).map(([k, v]) => [h("span.key", {}, k), h("span.mark", {}, ": "), scalar(v)]),
    "}",
  );
}

function list(open, parts, close) {
  const separated = parts.flatMap((part, i) => (i === 0 ? part : [h("span.mark", {}, ", "), ...part]));
  return h("span", {}, h("span.mark", {}, open), separated, h("span.mark", {}, close));
}

function scalar(value) {
  if (typeof value !== "string") return h(`span.${value === null ? "null" : typeof value}`, {}, String(value));
  if (value.length <= TEXT) return h("span.string", {}, JSON.stringify(value));
  const text = h("span.string", {}, JSON.stringify(value.slice(0, TEXT)));
  const more = h("button.link", { type: "button" }, `all ${value.length.toLocaleString("en-US")} characters`);
  more.addEventListener("click", () => {
    text.textContent = JSON.stringify(value);
    more.remove();
  });
  return h("span", {}, text, " ", more);
}
