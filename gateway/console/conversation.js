// An execution as a conversation: what was asked, what the model says (as it says it), the calls it made and what came
// of them, and what people said meanwhile.

import { h, icon, keyed } from "./dom.js";
import { clock, count, duration, plural, words } from "./format.js";
import { tree } from "./json.js";
import { executionLink } from "./ui.js";

/** Characters of a text shown before it folds. */
const LONG = 1_200;
const ROLES = { system: "Instructions", user: "Request", assistant: "Model", tool: "Tool result" };

/** Makes the conversation. Returns its element and `draw(story, live)`; `live` maps effects to what is streaming. */
export function conversation(pick) {
  const element = h("div.talk", { role: "log", "aria-label": "Conversation" });

  function draw(story, live) {
    keyed(element, turns(story, live), (turn) => turn.key, (turn) => turn.sign, (turn, before) => turn.make(before));
    for (const [effect, text] of live) {
      const place = element.querySelector(`[data-live="${effect}"]`);
      if (place) place.textContent = text;
    }
  }

  function turns(story, live) {
    const asked = (story.request?.messages ?? []).map((message, i) => ({
      key: `asked-${i}`, at: story.createdAt, sign: "", make: () => said(message),
    }));
    const call = story.request?.call;
    if (call && asked.length === 0) {
      const content = `${call.function.name} ${call.function.arguments}`;
      asked.push({ key: "asked", at: story.createdAt, sign: "", make: () => said({ role: "user", content }) });
    }
    const spans = story.spans.filter((span) => span.kind !== "compression" || span.state !== "open").map((span) => ({
      key: span.effect, at: span.from,
      sign: [
        span.state, span.attempts.length, span.approval?.to, live.has(span.effect), story.ended,
        JSON.stringify(span.arguments),
      ].join(),
      make: (before) => (span.kind === "inference" ? spoke(span, live, pick) : worked(span, pick, before)),
    }));
    const marks = story.marks.map((mark) => ({
      key: `mark-${mark.n}-${mark.label}`, at: mark.at, sign: mark.detail, make: () => marked(mark),
    }));
    const order = [...spans, ...marks].sort((a, b) => a.at - b.at);
    const { failure } = story;
    const end = failure ? [{ key: "failure", sign: "", make: () => fell(failure) }] : [];
    return [...asked, ...order, ...end];
  }

  return { element, draw };
}

function fell({ code, detail }) {
  return h("div.turn.failure", {}, icon("warn"), h("div", {}, h("strong", {}, words(code)), h("p", {}, detail)));
}

function said(message) {
  const text = typeof message.content === "string" ? message.content : JSON.stringify(message.content);
  const body = long(text || objectOf(message));
  if (message.role === "system") {
    const size = h("span.quiet", {}, ` · ${count(text.length)} characters`);
    return h("details.turn.system", {}, h("summary", {}, "Instructions", size), body);
  }
  const calls = (message.tool_calls ?? []).map(
    ({ function: { name, arguments: text } }) => h("p.mono.quiet", {}, `${name} ${text}`)
  );
  return h("div.turn", { class: message.role }, h("h3", {}, ROLES[message.role] ?? message.role), body, calls);
}

function objectOf(message) {
  const object = message.object;
  return object ? `(${count(object.bytes)} bytes, kept as object ${object.sha256.slice(0, 12)}…)` : "";
}

function spoke(span, live, pick) {
  const name = h("button.link", { type: "button", onclick: () => pick(span.effect) }, span.name);
  const heading = h("h3", {}, name, h("span.quiet", {}, span.state === "open" ? "writing" : costs(span)));
  return h("div.turn.assistant", { class: `is-${span.state}` }, heading, wordsOf(span, live));
}

function wordsOf(span, live) {
  if (span.state === "open") return h("p.text.live", { "data-live": span.effect }, live.get(span.effect) ?? "");
  if (span.state !== "done") return h("p.error", {}, span.result ?? words(span.state));
  if (span.result) return long(span.result);
  const calls = span.calls?.length ?? 0;
  return h("p.quiet", {}, calls > 0 ? `No words, ${plural(calls, "call")}` : "No words");
}

function costs(span) {
  const parts = [duration(span.to - span.from)];
  if (span.cached) parts.unshift("from the cache");
  if (span.usage) parts.unshift(plural(span.usage.completion_tokens, "token"));
  return parts.join(" · ");
}

function worked(span, pick, before) {
  const calm = span.state === "done" || span.state === "open";
  const summary = h("summary", {},
    h("i.glyph", { "aria-hidden": "true" }), h("span.name", {}, span.name),
    h("span.arguments.mono", {}, brief(span.arguments)),
    h("span.about", { class: calm ? "" : "bad" }, standing(span)),
  );
  const none = (text) => h("p.quiet", {}, text);
  const part = (name, content) => h("section", {}, h("h4", {}, name), content);
  const output = span.result ? long(span.result, true) : none(span.state === "open" ? "not there yet" : "none");
  return h("details.turn.work", {
    class: `is-${span.kind} is-${span.state}`, open: before?.open ?? span.state !== "done",
  },
    summary,
    h("div.in-out", {},
      span.kind !== "compression" && part("Input", span.arguments === null ? none("none") : tree(span.arguments)),
      span.child && part("Execution", executionLink(span.child, span.child)),
      part("Output", output),
      h("p", {}, h("button.link", { type: "button", onclick: () => pick(span.effect) }, "Attempts and times")),
    ),
  );
}

function standing(span) {
  if (span.state === "done") return duration(span.to - span.from);
  if (span.state !== "open") return words(span.state);
  return span.approval && span.approval.to === null ? "waits for a person" : "running";
}

/** The arguments of a call on one line. */
export function brief(value) {
  if (value === null || typeof value !== "object") return value === null ? "" : String(value);
  return Object.entries(value).map(([k, v]) => `${k}: ${typeof v === "string" ? v : JSON.stringify(v)}`).join(", ");
}

function marked(mark) {
  return h("div.turn.mark", { class: mark.tone },
    h("span", {},
      h("strong", {}, mark.label), mark.by && ` by ${mark.by}`, mark.detail && h("span.detail", {}, mark.detail),
    ),
    h("time", {}, clock(mark.at)));
}

/** A text that folds when it is long. */
export function long(text, mono = false) {
  const shown = (t) => h(`p.text${mono ? ".mono" : ""}`, {}, t);
  if (text.length <= LONG) return shown(text);
  const body = shown(`${text.slice(0, LONG)}…`);
  const more = h("button.link", { type: "button" }, `All ${count(text.length)} characters`);
  more.addEventListener("click", () => { body.textContent = text; more.remove(); });
  return h("div", {}, body, more);
}
