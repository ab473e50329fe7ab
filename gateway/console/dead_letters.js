// Dead letters: messages that were given up, why, and what is done about them.

import { Problem, get, post, query, remove } from "./api.js";
import { fill, h, keyed } from "./dom.js";
import { ago, bytes, moment, words } from "./format.js";
import { tree } from "./json.js";
import { ask, button, copyable, empty, every, executionLink, facts, notice, status, tag, toast } from "./ui.js";

/** How often it looks, and how many it shows at once. */
const LOOK_EVERY = 4_000;
const PAGE = 200;

export default function deadLetters({ main, id, params, signal, key, note, title }) {
  title("Dead letters");
  let chosen = id ?? null;
  let settled = params.get("settled") === "true";
  let letters = [];
  const list = h("ol.letters");
  const count = h("span.quiet");
  const detail = h("section.letter", { "aria-label": "Letter", tabindex: "-1" });
  const place = h("div.place", {}, h("div.split", {}, list, detail));
  const content = place.firstChild;
  const toggle = h("input", { type: "checkbox", checked: settled });
  toggle.addEventListener("change", () => {
    settled = toggle.checked;
    note({ settled: settled || null });
    look();
  });
  fill(main,
    h("header.page", {},
      h("h1", {}, "Dead letters"), count,
      h("div.end", {}, h("label.check.inline", {}, toggle, h("span", {}, "Also settled ones"))),
    ),
    place,
  );

  const look = async () => {
    try {
      const found = await get(`/internal/dead-letters${query({ limit: PAGE, settled: settled || null })}`, signal);
      letters = found.dead_letters;
      count.textContent = found.waiting === 1 ? "1 waits" : `${found.waiting || "none"} wait`;
      if (letters.length === 0) {
        const why = "What nobody can use is copied here with the reason, and everything else goes on.";
        fill(place, empty("No message was given up", h("p", {}, why), h("p", {}, "There is nothing to do.")));
        return;
      }
      if (place.firstChild !== content) fill(place, content);
      keyed(list, letters, (l) => l.id, (l) => JSON.stringify(l), row);
      mark();
      if (!chosen) show(letters[0].id);
      else if (!detail.firstChild) show(chosen);
    } catch (error) {
      if (!signal.aborted) fill(place, notice(error, "The dead letters"));
    }
  };

  function row(letter) {
    return h("li", {}, h("button", { type: "button", onclick: () => show(letter.id) },
      h("span.top", {},
        h("b", {}, words(letter.reason)), letter.settled && tag(letter.settled.how, "good"),
        h("time.quiet", { datetime: letter.at }, ago(letter.at)),
      ),
      h("span.detail", {}, letter.detail),
      h("span.from.mono", {}, `${letter.stream} ${letter.sequence}`)));
  }

  function mark() {
    for (const item of list.children) item.firstChild.setAttribute("aria-current", String(item.dataset.key === chosen));
  }

  async function show(wanted) {
    chosen = wanted;
    mark();
    history.replaceState(null, "", `#/dead-letters/${encodeURIComponent(wanted)}${settled ? "?settled=true" : ""}`);
    try {
      const letter = await get(`/internal/dead-letters/${encodeURIComponent(wanted)}`, signal);
      if (chosen === wanted) fill(detail, about(letter));
    } catch (error) {
      if (!signal.aborted) fill(detail, notice(error, "This letter"));
    }
  }

  function about(letter) {
    const done = letter.settled;
    const after = async (said) => {
      toast(said);
      await look();
      await show(letter.id);
    };
    const redrive = async (force = false) => {
      try {
        await post(`/internal/dead-letters/${encodeURIComponent(letter.id)}/redrive`, { force, by: "console" });
        await after("Published again");
      } catch (error) {
        if (force || !(error instanceof Problem) || error.code !== "still_dead") throw error;
        const sure = await ask("It would be given up again",
          { note: error.message, action: "Redrive all the same", kind: "danger" },
        );
        if (sure) await redrive(true);
      }
    };
    const drop = async () => {
      const sure = await ask("Remove this letter?",
        { note: "Its copy of the message goes; what remains says who removed it.", action: "Remove", kind: "danger" },
      );
      if (!sure) return;
      await remove(`/internal/dead-letters/${encodeURIComponent(letter.id)}${query({ by: "console" })}`);
      await after("Removed");
    };
    return [
      h("header", {},
        h("h2", {}, words(letter.reason)),
        status(done ? done.how : "waiting"), copyable(letter.id),
      ),
      h("p.lead", {}, letter.detail),
      !done && h("p.next", {}, h("b", {}, "What helps: "), letter.next_step),
      !done && h("div.row", {},
        button("Redrive", () => redrive(),
          { kind: "primary", glyph: "play", title: "Publish the message again, once" },
        ),
        button("Remove", drop, { kind: "danger", glyph: "cross" }),
      ),
      facts([
        ["Given up", moment(letter.at)], ["By", h("span.mono", {}, letter.by)], [
          "Stream", h("span.mono", {}, `${letter.stream} ${letter.sequence}`),
        ],
        [
          "Subject", letter.subject && h("span.mono.path", {}, letter.subject),
        ], ["Stored", letter.stored_at && moment(letter.stored_at)],
        ["Execution", letter.execution_id && executionLink(letter.execution_id, letter.execution_id)],
        ["Settled", done && `${done.how} by ${done.by}, ${moment(done.at)}`],
      ]),
      letter.message && h("section.part", {}, h("h3", {}, "Message"), tree(letter.message, 3)),
      letter.headers && Object.keys(letter.headers).length > 0 && h("section.part", {},
        h("h3", {}, "Headers"), tree(letter.headers, 1),
      ),
      letter.payload_hex && h("details.part", {},
        h("summary", {}, `Bytes as they were, ${bytes(letter.payload_hex.length / 2)}`),
        h("pre.hex", {}, dump(letter.payload_hex)),
      ),
    ];
  }

  function move(step) {
    const at = letters.findIndex((l) => l.id === chosen);
    const to = letters[Math.min(Math.max(at + step, 0), letters.length - 1)];
    if (to) show(to.id);
  }
  key("j", "Next letter", () => move(1));
  key("k", "Letter before", () => move(-1));
  every(LOOK_EVERY, signal, look);
}

/** Offsets, bytes and what can be read of them: sixteen to a line. */
function dump(hex, max = 2_048) {
  const lines = [];
  for (let at = 0; at < Math.min(hex.length, max * 2); at += 32) {
    const pairs = hex.slice(at, at + 32).match(/../g);
    const text = pairs.map(
      (p) => { const c = parseInt(p, 16); return c >= 32 && c < 127 ? String.fromCharCode(c) : "·"; }
    ).join("");
    lines.push(`${(at / 2).toString(16).padStart(6, "0")}  ${pairs.join(" ").padEnd(47)}  ${text}`);
  }
  if (hex.length > max * 2) lines.push(`… ${bytes(hex.length / 2 - max)} more`);
  return lines.join("\n");
}
