// The log of one execution, message by message: number, what it says, when, and its hash; each opens to all of it.

import { fill, h } from "./dom.js";
import { clock, duration, plural } from "./format.js";
import { tree } from "./json.js";
import { headline } from "./spans.js";
import { button, copy } from "./ui.js";

/** `state(n)` and `fork(n)` are what can be done at a message. Returns `element`, `add(entry, story)`, `reveal(n)`. */
export function journal({ state, fork }) {
  const list = h("ol.entries");
  const size = h("span.quiet");
  const only = h("select", { "aria-label": "Which messages", onchange: () => { list.dataset.only = only.value; } },
    [["", "All"], ["fact", "Facts"], ["decision", "Decisions"]].map(([value, name]) => h("option", { value }, name)));
  const element = h("section.log", { "aria-label": "Log" }, h("header", {}, h("h2", {}, "Log"), size, only), list);
  let number = 0;

  function add(entry, story) {
    number += 1;
    size.textContent = plural(number, "message");
    list.append(row(entry, story));
  }

  function row(entry, story) {
    const at = (entry.stored_at_ns ?? entry.at_ns) / 1e6;
    const names = entry.kind === "decision" ? entry.events.map((event) => event.type) : [entry.type];
    const body = h("div.body");
    const details = h("details", {},
      h("summary", {},
        h("span.n", {}, entry.n),
        h("span.what", { title: names.join(", ") },
          h("i.glyph", { class: entry.kind, title: entry.kind }), h("span", {},
            headline(entry), names.length > 1 && h("b", {}, `+${names.length - 1}`),
          ),
        ),
        h("span.when", { title: clock(at, true) }, `+${duration(at - story.createdAt)}`),
        h("span.hash",
          { title: entry.hash ?? "facts have no hash of their own: the next decision's covers them" },
          entry.hash ? entry.hash.slice(0, 6) : "",
        )),
      body);
    details.addEventListener("toggle", () => {
      if (!details.open || body.firstChild) return;
      fill(body,
        h("div.row", {},
          button("State here", () => state(entry.n), { kind: "quiet small" }),
          button("Fork here", () => fork(entry.n), { glyph: "fork", kind: "quiet small" }),
          button("Copy", () => copy(JSON.stringify(entry, null, 2)), { glyph: "copy", kind: "quiet small" })),
        tree(entry, 2));
    });
    return h("li", { class: entry.kind, "data-n": entry.n }, details);
  }

  /** Shows a message without opening it. */
  function reveal(n) {
    const found = list.querySelector(`[data-n="${n}"]`);
    if (!found) return;
    list.querySelector(".shown")?.classList.remove("shown");
    found.classList.add("shown");
    list.scrollTo({ top: found.offsetTop - list.offsetTop - 80, behavior: "smooth" });
  }

  return { element, add, reveal };
}
