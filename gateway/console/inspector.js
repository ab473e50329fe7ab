// One effect: what went in, what came out, who did it, and where its time went, attempt by attempt.

import { get, raw } from "./api.js";
import { long } from "./conversation.js";
import { fill, h } from "./dom.js";
import { bytes, clock, count, duration, words } from "./format.js";
import { tree } from "./json.js";
import { messagesOf } from "./state.js";
import { button, copyable, executionLink, facts, failed, notice, status } from "./ui.js";

const KINDS = { inference: "Inference", tool: "Tool call", child: "Another execution", compression: "Summary" };
const HINT = "Choose an effect in the timeline to see what went in, what came out, and where its time went.";
const STATES = { open: "running", done: "completed" };

export function inspector(id, signal) {
  const element = h("div.effect");
  let shown = null;

  function draw(story, effect) {
    const span = effect ? story.span(effect) : null;
    const sign = span && JSON.stringify([span.effect, span.state, span.attempts, span.approval, span.arguments]);
    if (sign === shown && element.firstChild) return;
    shown = sign;
    fill(element, span ? about(span) : h("p.hint", {}, HINT));
  }

  function about(span) {
    const last = span.attempts.at(-1);
    const { full } = span;
    return [
      h("header", {},
        h("h2", {}, span.name), status(STATES[span.state] ?? span.state),
        h("span.quiet", {}, KINDS[span.kind]), copyable(span.effect),
      ),
      facts(factsOf(span, last)),
      (span.attempts.length > 1 || last?.detail) && attempts(span),
      span.kind === "inference" && prompt(span),
      ["tool", "child"].includes(span.kind)
        && part("Input", span.arguments === null ? h("p.quiet", {}, "none") : tree(span.arguments, 3)),
      part("Output", span.result ? long(span.result, span.kind === "tool") : h("p.quiet", {}, "none yet")),
      (span.calls?.length ?? 0) > 0 && part("Calls it asked for", span.calls.map(callOf)),
      full && part("Whole output", `${bytes(full.bytes)}, kept as an object`, button("Save it", () => save(full, signal))),
    ];
  }

  function prompt(span) {
    const place = h("div");
    const read = async () => {
      try {
        const state = await get(`/internal/executions/${id}/state?at=${span.n}`, signal);
        fill(place, messagesOf((state.context ?? []).slice(0, span.context ?? undefined)));
      } catch (error) {
        fill(place, notice(error, "What the model read"));
      }
    };
    fill(place, button(`Show the ${count(span.context)} messages it read`, read, { kind: "quiet small" }));
    return part("Prompt", place);
  }

  return { element, draw };
}

function factsOf(span, last) {
  const { parts } = last ?? {};
  const took = (ms) => (ms === undefined ? null : duration(ms));
  return [
    ["Asked for", clock(span.from, true)],
    ["Ended", span.to && clock(span.to, true)],
    ["Took", span.to && duration(span.to - span.from)],
    ["Worker", last?.worker && h("span.mono", {}, last.worker)],
    ["Box", last?.sandbox],
    ["In the queue", took(parts?.queue)],
    ["Reading the prompt", took(parts?.prefill)],
    ["Writing", took(parts?.decode)],
    ["Running", took(parts?.run)],
    ["Tokens", span.usage && `${count(span.usage.prompt_tokens)} in · ${count(span.usage.completion_tokens)} out`],
    ["Known before", span.cachedTokens ? `${count(span.cachedTokens)} tokens of the prompt` : null],
    ["Result", span.cached ? "from the cache" : null],
    ["Stopped by", words(span.finish)],
    ["Person", span.approval && wordOf(span.approval)],
    ["Execution", span.child && executionLink(span.child, span.child)],
  ];
}

/** What a person said about a call, and who. */
function wordOf({ to, expires, verdict, by, via, reason }) {
  if (to === null) return `asked until ${clock(expires)}`;
  return `${words(verdict ?? "gone")} by ${by ?? via ?? "nobody"}${reason ? `: ${reason}` : ""}`;
}

function callOf(call) {
  return h("p.mono", {}, `${call.function.name} ${call.function.arguments}`);
}

function part(name, ...content) {
  return h("section.part", {}, h("h3", {}, name), ...content);
}

function attempts(span) {
  return part("Attempts", h("div.scroll", {}, h("table.plain", {},
    h("thead", {},
      h("tr", {}, ["", "Begun", "Took", "Worker", "Outcome"].map((name) => h("th", { scope: "col" }, name))),
    ),
    h("tbody", {}, span.attempts.map((one) => h("tr", {},
      h("td.number", {}, one.attempt), h("td.mono", {}, clock(one.from, true)), h("td", {},
        one.to ? duration(one.to - one.from) : "–",
      ),
      h("td.mono", {}, one.worker ?? "–"),
      h("td", {}, status(STATES[one.outcome] ?? one.outcome),
        one.detail && h("p.error", {}, one.detail), one.reason && h("span.quiet", {},
          ` after ${words(one.reason)}`,
        ))))))));
}

async function save(object, signal) {
  try {
    const blob = await raw(`/internal/objects/${object.sha256}`, signal);
    const link = h("a", { href: URL.createObjectURL(blob), download: `${object.sha256.slice(0, 16)}.txt` });
    link.click();
    URL.revokeObjectURL(link.href);
  } catch (error) {
    failed(error);
  }
}
