// The timeline of one execution: a row for each effect, its pieces of time to scale; what people did as lines across.

import { fill, h, keyed } from "./dom.js";
import { clock, duration, words } from "./format.js";
import { segments, ticks } from "./spans.js";

const SAYS = {
  approval: "waits for a person", backoff: "waits for the next attempt", queue: "in the queue", prefill: "reads the prompt",
  decode: "writes", run: "runs", open: "under way", failed: "failed", lost: "worker lost", cancelled: "cancelled", denied: "denied",
};
const LEGEND = ["queue", "prefill", "decode", "run", "approval", "backoff", "lost"];

/** Makes the timeline; `pick(effect)` is called when a row is pressed. Returns its element and `draw(story, now, picked)`. */
export function waterfall(pick) {
  const axis = h("div.axis", { "aria-hidden": "true" });
  const rows = h("ol.rows");
  const over = h("div.over", { "aria-hidden": "true" });
  const legend = h("p.legend", { "aria-hidden": "true" });
  const element = h("section.waterfall", { "aria-label": "Timeline" },
    h("div.lanes", {}, h("div.head", {}, h("span"), axis, h("span")), h("div.all", {}, over, rows)), legend);

  function draw(story, now, picked) {
    const from = story.createdAt ?? now;
    const to = Math.max(story.endedAt ?? now, story.lastAt ?? now, from + 1);
    const total = to - from;
    const at = (moment) => `${Math.min(100, Math.max(0, ((moment - from) / total) * 100))}%`;
    const steps = ticks(total);
    const width = (a, b) => `${Math.min(100, Math.max(0, ((b - a) / total) * 100))}%`;
    fill(axis,
      steps.map(
        (step) => h("span", { class: step / total > 0.94 ? "last" : "", style: { left: at(from + step) } },
          step === 0 ? "0" : duration(step).replace(/\.0+(?= )/, ""),
        )
      ),
    );
    fill(over, steps.map((step) => h("i.grid", { style: { left: at(from + step) } })),
      story.pauses.map((p) => h("i.paused", { style: { left: at(p.from), width: width(p.from, p.to ?? to) } })),
      story.marks.filter((mark) => mark.tone !== "quiet").map(
        (mark) => h("i.mark", { class: mark.tone, style: { left: at(mark.at) } })
      ));
    const seen = new Set();
    keyed(rows, story.spans,
      (span) => span.effect,
      (span) => [span.name, span.state, span.attempts.length, story.ended].join(), (span) => row(span, pick),
    );
    story.spans.forEach((span, i) => {
      const button = rows.children[i].firstChild;
      const [, track, took] = button.children;
      const pieces = segments(span, Math.max(now, span.from));
      pieces.forEach((piece) => seen.add(piece.what));
      fill(track, pieces.map(
        (piece) => h("i.piece",
          {
            class: piece.what, title: says(piece),
            style: { left: at(piece.from), width: width(piece.from, piece.to) },
          },
        )
      ),
        pieces.length === 0 && h("i.piece.none", { style: { left: at(span.from) } }));
      took.textContent = duration((span.to ?? now) - span.from);
      button.setAttribute("aria-pressed", String(span.effect === picked));
    });
    const known = LEGEND.filter((what) => seen.has(what));
    if (legend.dataset.known !== known.join()) {
      legend.dataset.known = known.join();
      fill(legend, known.map((what) => h("span", {}, h("i.piece", { class: what }), SAYS[what])));
    }
  }

  return { element, draw };
}

function says(piece) {
  const number = piece.attempt > 1 ? `attempt ${piece.attempt}, ` : "";
  const took = `${duration(piece.to - piece.from)}, from ${clock(piece.from, true)}`;
  return `${number}${SAYS[piece.what] ?? piece.what}: ${took}`;
}

function row(span, pick) {
  const first = span.kind === "inference" || span.kind === "compression";
  return h("li", { class: `is-${span.kind} is-${span.state}${first ? " first" : ""}` },
    h("button", { type: "button", onclick: () => pick(span.effect), title: `${span.effect}: ${words(span.state)}` },
      h("span.label", {},
        h("i.glyph", { "aria-hidden": "true" }),
        h("span.name", {}, span.name),
        span.kind === "inference" && h("span.quiet", {}, `turn ${span.turn}`),
        span.attempts.length > 1 && h("span.tag.warn", {}, `${span.attempts.length} attempts`),
        !["open", "done"].includes(span.state) && h("span.tag",
          { class: span.state === "cancelled" ? "" : "bad" }, words(span.state),
        ),
        span.state === "open" && span.approval && span.approval.to === null && h("span.tag.warn", {}, "waits")),
      h("span.track"), h("span.took")));
}
