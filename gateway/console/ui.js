// Small pieces that several pages use: status, notices, dialogs, things to copy.

import { Problem } from "./api.js";
import { h, icon } from "./dom.js";
import { short, words } from "./format.js";

/** A status as a coloured dot and a word. */
export function status(name) {
  return h("span.status", { class: `is-${name}` }, h("i.dot", { "aria-hidden": "true" }), words(name));
}

export function tag(text, tone = "") {
  return h("span.tag", { class: tone }, text);
}

/** An id that copies itself when it is pressed. */
export function copyable(text, shown = text) {
  const button = h("button.copy", { type: "button", title: `Copy ${text}`, "aria-label": `Copy ${text}` },
    h("span", {}, shown), icon("copy"));
  button.addEventListener("click", (event) => {
    event.stopPropagation();
    copy(text);
  });
  return button;
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast("Copied");
  } catch {
    toast("This browser does not let the page copy", "bad");
  }
}

/** A link to an execution. */
export function executionLink(id, text = short(id)) {
  return h("a.mono", { href: `#/executions/${id}`, title: id }, text);
}

/** Says something for a few seconds. */
export function toast(text, tone = "") {
  const element = h("div.toast", { class: tone, role: tone === "bad" ? "alert" : "status" }, text);
  document.getElementById("toasts").append(element);
  setTimeout(() => element.classList.add("going"), tone === "bad" ? 6_000 : 2_200);
  setTimeout(() => element.remove(), tone === "bad" ? 6_400 : 2_600);
}

/** Says what went wrong and what to do next. */
export function failed(error) {
  const problem = error instanceof Problem ? error : new Problem(-1, { detail: String(error) });
  toast([sentence(problem.message), sentence(problem.next)].filter(Boolean).join(" "), "bad");
}

/** In the place of what could not be shown. */
export function notice(error, what, retry = null) {
  const absent = error instanceof Problem && error.absent;
  return h("div.notice", { class: absent ? "" : "bad", role: "status" },
    icon(absent ? "clock" : "warn"),
    h("div", {},
      h("strong", {}, absent ? `${what} cannot be had from this gateway now` : `${what} could not be read`),
      h("p", {}, sentence(error.message), error.next ? ` ${sentence(error.next)}` : ""),
      retry && h("button", { type: "button", onclick: retry }, "Try again")));
}

function sentence(text) {
  if (!text) return "";
  const begun = text[0].toUpperCase() + text.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}

export function empty(title, ...more) {
  return h("div.empty", {}, h("h2", {}, title), ...more);
}

/** A button that cannot be pressed twice while what it does is under way. */
export function button(label, action, { glyph = null, kind = "", title = null, disabled = false } = {}) {
  const element = h("button", { type: "button", class: kind, title, disabled },
    glyph && icon(glyph), h("span", {}, label),
  );
  element.addEventListener("click", async () => {
    element.disabled = true;
    try {
      await action();
    } catch (error) {
      failed(error);
    } finally {
      element.disabled = false;
    }
  });
  return element;
}

/**
 * Asks with a form. `fields` are elements with names; resolves to their values, or null when it was left.
 */
export function ask(title, { note = null, fields = [], action = "OK", kind = "primary" }) {
  return new Promise((done) => {
    const form = h("form", { method: "dialog" },
      h("h2", { id: "dialog-title" }, title), note && h("p.note", {}, note), fields,
      h("div.actions", {},
        h("button", { type: "button", onclick: () => dialog.close("") }, "Back"),
        h("button", { type: "submit", value: "yes", class: kind }, action)));
    const dialog = h("dialog", { "aria-labelledby": "dialog-title" }, form);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      dialog.close("yes");
    });
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close(""));
    dialog.addEventListener("close", () => {
      const values = Object.fromEntries(
        [...new FormData(form)].map(([k, v]) => [k, typeof v === "string" ? v.trim() : v])
      );
      dialog.remove();
      done(dialog.returnValue === "yes" ? values : null);
    });
    document.body.append(dialog);
    dialog.showModal();
    (form.querySelector("[autofocus]") ?? form.querySelector("textarea, input, select"))?.focus();
  });
}

export function field(label, control, hint = null) {
  return h("label.field", {}, h("span", {}, label), control, hint && h("small", {}, hint));
}

export function choice(name, options, chosen = null, attributes = {}) {
  return h("select", { name, ...attributes },
    options.map(([value, text]) => h("option", { value, selected: value === chosen }, text)),
  );
}

/** A bar of how much is used. */
export function meter(parts, max, label) {
  const bar = h("div.meter", { role: "img", "aria-label": label, title: label });
  for (const [value, tone] of parts) {
    bar.append(h("i", { class: tone, style: { width: `${max > 0 ? Math.min(100, (value / max) * 100) : 0}%` } }));
  }
  return bar;
}

/** Label and value pairs. */
export function facts(pairs) {
  return h("dl.facts", {}, pairs.filter((pair) => pair && pair[1] !== null && pair[1] !== undefined && pair[1] !== "")
    .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

/** Calls `action` now and every `ms` until the signal falls; while the page is hidden, not. */
export function every(ms, signal, action) {
  const run = async () => {
    if (signal.aborted) return;
    let next = ms;
    if (!document.hidden) next = (await action()) ?? ms;
    if (!signal.aborted) setTimeout(run, next);
  };
  run();
}
