// How the parts are, how fast it was lately, and a proof of the newest executions.

import { get, health, query } from "./api.js";
import { fill, h } from "./dom.js";
import { count, duration, plural, words } from "./format.js";
import { button, every, executionLink, facts, meter, notice, status, tag } from "./ui.js";

/** How often it looks, milliseconds. */
const LOOK_EVERY = 3_000;
/** Executions that are proven, and how many at a time. */
const PROVEN = 100;
const AT_ONCE = 4;
const NAMES = {
  tool_name: "Tool", model: "Model", ttft_ms: "First token", prompt_tokens: "Read", completion_tokens: "Written",
  cached_tokens: "Known before",
};
const TIMES = "half took at most so long, nineteen of twenty at most so long";
const HINTS = { duration_ms: TIMES, queue_ms: TIMES, ttft_ms: TIMES };
const SINCE = [["15m", "15 minutes"], ["1h", "hour"], ["24h", "day"], ["7d", "week"]];

export default function healthPage({ main, signal, key, title }) {
  title("Health");
  const parts = h("div.place");
  const speed = h("div.place");
  const audit = h("div.place");
  let since = "1h";
  const period = h("select", { "aria-label": "Period", onchange: () => { since = period.value; measure(); } },
    SINCE.map(([value, name]) => h("option", { value, selected: value === since }, `the last ${name}`)));
  fill(main,
    h("header.page", {}, h("h1", {}, "Health")), parts,
    h("header.page.second", {}, h("h1", {}, "Performance"), h("div.end", {}, period)), speed,
    h("header.page.second", {}, h("h1", {}, "Audit")), audit);
  idle(audit);

  const look = async () => {
    try {
      fill(parts, listOf(await health(signal)));
    } catch (error) {
      if (!signal.aborted) fill(parts, notice(error, "Health"));
    }
  };
  const measure = async () => {
    try {
      fill(speed, figures(await get(`/internal/performance${query({ since })}`, signal)));
    } catch (error) {
      if (!signal.aborted) fill(speed, notice(error, "Performance"));
    }
  };
  function idle(place) {
    const why = `Decides the newest ${PROVEN} executions again and compares every decision byte for byte with the log. `;
    const options = { glyph: "shield", kind: "primary" };
    fill(place, h("div.card.wide", {},
      h("p", {}, why, h("code", {}, "vlinders audit"), " proves all of it."),
      button("Verify the newest executions", () => prove(place, signal), options),
    ));
  }
  key("r", "Look again", () => { look(); measure(); });
  key("v", "Verify the newest executions", () => prove(audit, signal));
  every(LOOK_EVERY, signal, look);
  measure();
}

function listOf({ status: overall, parts }) {
  const { nats, workers, models, sandbox, vectors, dead_letters: letters } = parts;
  const [tone, about] = overall === "ready" ? ["completed", "Takes requests, and a model can answer them."]
    : nats.connected ? ["paused", "Takes requests; no model is loaded that could answer."]
      : ["failed", "Has lost its connection to NATS."];
  const crew = Object.entries(workers);
  const number = crew.reduce((sum, [, of]) => sum + of, 0);
  const part = (name, state, ...content) => h("div", {}, h("h2", {}, name), state, h("div.about", {}, content));
  return h("div.card.parts", {},
    part("Gateway", mark(tone, overall), about),
    part("NATS", mark(nats.connected ? "completed" : "failed", nats.connected ? "connected" : "not connected"),
      `nats-server ${nats.version}`),
    part("Workers", mark(number > 0 ? "completed" : "paused", plural(number, "worker")),
      h("span", {},
        crew.map(([role, of]) => `${of} ${words(role)}`).join(", "), " · ",
        h("a", { href: "#/workers" }, "who they are"),
      )),
    part("Models", mark(models.length > 0 ? "completed" : "paused", plural(models.length, "model")), models.join(", ")),
    part("Boxes for tools", boxes(sandbox), Object.entries(sandbox).map(boxOf)),
    part("Vectors", troubled(vectors), Object.entries(vectors).map(storeOf)),
    parts.projection && part("Tables", tableState(parts.projection), tablesOf(parts.projection)),
    part("Dead letters",
      mark(
        letters.waiting > 0 ? "paused" : "completed",
        letters.waiting === null ? "unknown" : `${count(letters.waiting)} waiting`,
      ),
      letters.waiting > 0 ? h("a", { href: "#/dead-letters" }, "Look at them") : "No message was given up."),
  );
}

function tableState({ state }) {
  return mark({ following: "completed", rebuilding: "running" }[state] ?? "failed", words(state));
}

function tablesOf({ database, trouble, rebuilding, lag_messages: lag }) {
  const behind = lag ? `, ${plural(lag, "message")} behind the log` : "";
  return [
    h("div", {}, h("b", {}, database), behind), rebuilding && built(rebuilding), trouble && h("p.error", {}, trouble),
  ];
}

/** Says that tables are not whole yet. */
export function built({ done, of }) {
  return `The tables are being built: ${count(done)} of ${plural(of, "message")} of the log.`;
}

function boxOf([worker, box]) {
  const why = box.refused ?? box.commands_refused;
  return h("div", { title: worker },
    h("b", {}, box.tier), ` ${(box.enforced ?? []).join(", ")}`, why && h("p.error", {}, why),
  );
}

function storeOf([worker, store]) {
  const by = store.model ? ` by ${store.model}` : "";
  return h("div", { title: worker }, h("b", {}, store.store), by, store.trouble && h("p", {}, store.trouble));
}

function mark(tone, text) {
  return h("span.status", { class: `is-${tone}` }, h("i.dot", { "aria-hidden": "true" }), text);
}

function boxes(sandbox) {
  const all = Object.values(sandbox);
  if (all.length === 0) return mark("paused", "no tool worker");
  const refused = all.filter((box) => box.tier === "none").length;
  return refused > 0 ? mark("failed", `${refused} refuse calls`) : mark("completed", "confined");
}

function troubled(vectors) {
  const all = Object.values(vectors);
  if (all.length === 0) return mark("paused", "no analysis worker");
  return all.some((store) => store.trouble) ? mark("paused", "in trouble") : mark("completed", "at hand");
}

/** What was done in the period: executions by where they stand, models and tools with their times. */
function figures({ executions, models, tools, rebuilding }) {
  const card = (name, ...content) => h("article.card.wide", {}, h("header", {}, h("h2", {}, name)), content);
  const stood = Object.entries(executions).map(([name, number]) => [words(name), count(number)]);
  return h("div.cards", {},
    rebuilding && h("p.quiet", {}, built(rebuilding)),
    card("Executions", stood.length > 0 ? facts(stood) : nothing()),
    card("Models", rows(models)),
    card("Tools", rows(tools)),
  );
}

function nothing() {
  return h("p.quiet", {}, "Nothing in this period.");
}

/** A table of whatever its rows hold; times as half and nineteen of twenty. */
function rows(all) {
  if (all.length === 0) return nothing();
  const names = Object.keys(all[0]);
  const kind = (name) => (typeof all[0][name] === "string" ? "" : "number");
  const head = names.map((name) => h("th", { scope: "col", class: kind(name), title: HINTS[name] }, named(name)));
  const row = (one) => h("tr", {}, names.map((name) => h("td", { class: kind(name) }, shown(name, one[name]))));
  return h("div.scroll", {}, h("table.list", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, all.map(row))));
}

function named(name) {
  const text = NAMES[name] ?? words(name.replace(/_ms$/, ""));
  return text[0].toUpperCase() + text.slice(1);
}

function shown(name, value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "object") return [duration(value.p50), h("span.quiet", {}, ` · ${duration(value.p95)}`)];
  return typeof value === "number" ? count(value) : String(value);
}

/** Verifies the newest executions, some at a time, and says which did not come out again. */
async function prove(place, signal) {
  let found;
  try {
    found = await get(`/internal/executions${query({ limit: PROVEN })}`, signal);
  } catch (error) {
    if (!signal.aborted) fill(place, notice(error, "The newest executions"));
    return;
  }
  const waiting = found.executions.map((row) => row.execution_id);
  const total = waiting.length;
  const broken = [];
  const result = { executions: 0, decisions: 0, events: 0 };
  const bar = h("div");
  const said = h("p", { role: "status" });
  const list = h("ul");
  fill(place, h("div.card.wide", {}, bar, said, list));
  const say = () => {
    const { executions, decisions, events } = result;
    fill(bar, meter([[executions, broken.length > 0 ? "bad" : "good"]], total, `${executions} of ${total}`));
    const so = [
      `${count(executions)} of ${plural(total, "execution")}`, plural(decisions, "decision"), plural(events, "message"),
    ];
    const bad = `${plural(broken.length, "execution")} did not come out again.`;
    fill(said, broken.length > 0 ? h("b.error", {}, bad, " ") : executions === total && mark("completed", "Verified"),
      ` ${so.join(", ")}`, executions === total && broken.length === 0 && ": every decision came out byte for byte.");
  };
  say();
  const work = async () => {
    for (let id = waiting.shift(); id && !signal.aborted; id = waiting.shift()) {
      try {
        const proof = await get(`/internal/executions/${id}/verify`, signal);
        result.decisions += proof.decisions ?? 0;
        result.events += proof.events ?? 0;
        if (!proof.verified) broken.push([id, proof.difference ?? `decision ${proof.decision} differs`]);
      } catch (error) {
        if (signal.aborted) return;
        if (error.absent) throw error;
        broken.push([id, error.message]);
      }
      result.executions += 1;
      fill(list, broken.map(([one, why]) => h("li", {}, executionLink(one, one), h("p.error", {}, String(why)))));
      say();
    }
  };
  try {
    await Promise.all(Array.from({ length: AT_ONCE }, work));
    said.after(button("Verify again", () => prove(place, signal), { glyph: "shield" }));
  } catch (error) {
    if (!signal.aborted) fill(place, notice(error, "Verification"));
  }
}
