// The state after any message, as the rules fold it: asked of the gateway, never guessed here.

import { get, query } from "./api.js";
import { long } from "./conversation.js";
import { fill, h, icon } from "./dom.js";
import { count, words } from "./format.js";
import { tree } from "./json.js";
import { headline } from "./spans.js";
import { facts, notice, status } from "./ui.js";

/** How long the slider rests before it asks, milliseconds. */
const REST = 120;

export function stateView(id, story, signal, noted) {
  let at = null;
  let pinned = false;
  let timer;
  let asked = new AbortController();
  const slider = h("input",
    {
      type: "range", min: "0", max: "0", value: "0", "aria-label": "After which message",
      oninput: () => show(Number(slider.value)),
    },
  );
  const label = h("output");
  const place = h("div.state-at");
  const step = (by) => show(Math.min(Math.max((at ?? last()) + by, 0), last()));
  const element = h("div", {},
    h("div.slider", {},
      h("button.bare",
        { type: "button", onclick: () => step(-1), "aria-label": "One message earlier", title: "One earlier ([)" },
        icon("left"),
      ), slider,
      h("button.bare",
        { type: "button", onclick: () => step(1), "aria-label": "One message later", title: "One later (])" },
        icon("right"),
      ), label),
    place);

  function last() {
    return story.entries.at(-1)?.n ?? 0;
  }

  /** Shows the state after message `n`; null for the newest, or for where it stood. */
  function show(n) {
    if (n !== null) pinned = true;
    const wanted = n ?? (pinned ? at : last());
    if (wanted === at && place.firstChild) return;
    at = wanted;
    draw();
    clearTimeout(timer);
    timer = setTimeout(read, REST);
  }

  function draw() {
    if (!element.isConnected) return;
    slider.max = String(last());
    if (!pinned && at !== null && at !== last()) return show(null);
    slider.value = String(at ?? last());
    const entry = story.entries[at ?? last()];
    const name = entry ? headline(entry) : "";
    fill(label,
      h("b", {}, `${at ?? last()}`), h("span.quiet", {}, ` of ${last()}`), h("span.what", { title: name }, name),
    );
    slider.setAttribute("aria-valuetext", `${at} of ${last()}: ${name}`);
  }

  async function read() {
    if (story.entries.length === 0) {
      timer = setTimeout(read, REST);
      return;
    }
    asked.abort();
    asked = new AbortController();
    const mine = AbortSignal.any([signal, asked.signal]);
    at = Math.min(at, last());
    noted(at);
    try {
      fill(place, shown(await get(`/internal/executions/${id}/state${query({ at })}`, mine)));
    } catch (error) {
      if (!mine.aborted) fill(place, notice(error, "The state after a message"));
    }
  }

  return { element, show, draw, step };
}

function shown(state) {
  const { budget = {}, effects = [], context = [] } = state;
  return [
    facts([
      ["Phase", words(state.phase)],
      ["Control", words(state.control)],
      ["Turn", state.turn],
      ["Context", state.context_tokens === undefined ? null : `about ${count(state.context_tokens)} tokens`],
      ["Tokens used", budget.usage && count(budget.usage.tokens)],
      ["Inferences", budget.iterations],
      ["Tool calls", budget.tool_calls],
      ["Outcome", state.outcome && words(String(state.outcome))],
    ]),
    part("Effects", effects.length === 0 ? h("p.quiet", {}, "none open") : tableOf(effects)),
    part("What the model would read", messagesOf(context)),
    state.answer && part("Answer", long(state.answer)),
    h("details.part", {}, h("summary", {}, "All of it, as JSON"), tree(state, 2)),
  ];
}

function tableOf(effects) {
  const row = (one) => h("tr", {},
    h("td.mono", {}, one.effect), h("td", {}, status(String(one.state).toLowerCase())),
    h("td.number", {}, `attempt ${one.attempt}`), h("td.wide", {}, one.what),
  );
  return h("div.scroll", {}, h("table.plain", {}, h("tbody", {}, effects.map(row))));
}

function part(name, ...content) {
  return h("section.part", {}, h("h3", {}, name), ...content);
}

/** Messages as a model reads them. */
export function messagesOf(messages) {
  if (messages.length === 0) return h("p.quiet", {}, "nothing yet");
  return h("ol.messages", {}, messages.map((message) => {
    const text = typeof message.content === "string" ? message.content : JSON.stringify(message.content ?? "");
    const calls = (message.tool_calls ?? []).map(
      (call) => h("p.mono", {}, `${call.function.name} ${call.function.arguments}`)
    );
    return h("li", { class: message.role },
      h("span.role", {}, message.role),
      h("div", {}, text && long(text, message.role === "tool"), calls),
    );
  }));
}
