// The executions, newest first: filters that the address holds, rows that change as they happen, older ones on demand.

import { get, query, stream } from "./api.js";
import { fill, h, icon, keyed, soon } from "./dom.js";
import { ago, count, duration, line, moment, short, words } from "./format.js";
import { built } from "./health.js";
import { newRequest } from "./request.js";
import { choice, copyable, empty, notice, status, tag } from "./ui.js";

const FAILED = ["failed", "rejected", "timed_out", "budget_exhausted"];
const STATES = [
  ["", "All"],
  ["submitted,running,paused", "Open"],
  ["completed", "Completed"],
  [FAILED.join(), "Failed"],
  ["cancelled", "Cancelled"],
];
const COLUMNS = ["Status", "Request", "Agent", "Model", "User", "Tokens", "Calls", "Duration", "Begun"];
const KINDS = [["", "Any kind"], ["chat", "Chat"], ["agent", "Agent"], ["tool", "Tool call"], ["index", "Index"]];
/** Rows asked for at once. */
const PAGE = 50;
/** How long a reader pauses typing before it counts, milliseconds. */
const TYPING = 250;

export default function executions({ main, params, signal, key, note, title }) {
  title("Executions");
  const filter = Object.fromEntries(
    ["status", "kind", "agent_type", "user_id", "q"].map((name) => [name, params.get(name) ?? ""])
  );
  const rows = new Map();
  // Rows of the live stream come from the log, which is ahead of the tables that the list is read from.
  const heard = new Map();
  let next = null;
  let selected = null;
  let asked = new AbortController();

  const live = h("span.liveness", { role: "status" });
  const body = h("tbody");
  const head = COLUMNS.map((name, i) => h("th", { scope: "col", class: i >= 5 ? "number" : "" }, name));
  const table = h("table.list.executions", {}, h("thead", {}, h("tr", {}, head)), body);
  const rebuilding = h("p.quiet");
  const place = h("div.place", { "aria-busy": "true" }, skeleton());
  const older = h("button", { type: "button", onclick: () => load(next), hidden: true }, "Show older executions");
  const { bar, search } = filters(filter, () => { note(filter); begin(); }, signal);

  fill(main,
    h("header.page", {}, h("h1", {}, "Executions"), live,
      h("div.end", {},
        h("button.primary", { type: "button", onclick: newRequest, title: "New request (n)" },
          icon("grant"), h("span", {}, "New request"),
        ),
      )),
    bar, rebuilding, place, h("div.more", {}, older));

  const draw = soon(() => {
    const shown = [...rows.values()].sort((a, b) => b.created_at.localeCompare(a.created_at));
    keyed(body, shown, (row) => row.execution_id, (row) => JSON.stringify(row), (row) => tr(row));
    const content = shown.length > 0 ? table : nothing(filter);
    if (shown.length === 0 || place.firstChild !== table) fill(place, content);
    place.setAttribute("aria-busy", "false");
    older.hidden = next === null;
    mark();
  });

  async function load(before = null) {
    asked.abort();
    asked = new AbortController();
    const mine = AbortSignal.any([signal, asked.signal]);
    try {
      const page = await get(`/internal/executions${query({ ...filter, limit: PAGE, before })}`, mine);
      if (before === null) rows.clear();
      for (const row of page.executions) rows.set(row.execution_id, row);
      next = page.next ?? null;
      for (const row of heard.values()) take(row);
      fill(rebuilding, page.rebuilding && built(page.rebuilding));
      draw();
    } catch (error) {
      if (mine.aborted) return;
      older.hidden = true;
      place.setAttribute("aria-busy", "false");
      fill(place, notice(error, "The list of executions", begin), byId());
    }
  }

  function begin() {
    load();
  }

  /** Puts a row where it belongs; one that is older than what is shown waits until that is asked for. */
  function take(row) {
    const oldest = [...rows.values()].reduce((least, one) => (one.created_at < least ? one.created_at : least), "~");
    const shown = next === null || row.created_at >= oldest || rows.has(row.execution_id);
    if (shown && fits(row, filter)) rows.set(row.execution_id, row);
    else rows.delete(row.execution_id);
  }

  function mark() {
    for (const row of body.children) row.classList.toggle("selected", row.dataset.key === selected);
  }

  function move(step) {
    const all = [...body.children];
    const at = all.findIndex((row) => row.dataset.key === selected);
    const row = all[at < 0 ? (step > 0 ? 0 : all.length - 1) : Math.min(Math.max(at + step, 0), all.length - 1)];
    if (!row) return;
    selected = row.dataset.key;
    mark();
    row.querySelector("a").focus();
    row.scrollIntoView({ block: "nearest" });
  }

  key("j", "Next row", () => move(1));
  key("k", "Row before", () => move(-1));
  key("/", "Find by text", () => search.focus());
  key("n", "New request", newRequest);
  key("r", "Read anew", begin);

  begin();
  const said = (tone, text) => fill(live, h("i.dot", { class: tone, "aria-hidden": "true" }), text);
  // What happened before the stream was open, or was missed by it, is read.
  const anew = () => {
    heard.clear();
    begin();
  };
  stream("/internal/executions/live", {
    signal,
    state: (now) => {
      if (now === "open") anew();
      said(now === "open" ? "good pulse" : "warn", now === "open" ? "Live" : "Connecting");
    },
    event: (name, row) => {
      if (name === "missed") anew();
      if (name !== "execution") return;
      heard.delete(row.execution_id);
      heard.set(row.execution_id, row);
      if (heard.size > PAGE) heard.delete(heard.keys().next().value);
      take(row);
      draw();
    },
  }).catch(() => said("warn", "Not live"));
  // How long open ones have run.
  const tick = setInterval(() => {
    for (const cell of body.querySelectorAll("[data-since]")) {
      cell.textContent = duration(Date.now() - Number(cell.dataset.since));
    }
    for (const cell of body.querySelectorAll("time")) cell.textContent = ago(cell.dateTime);
  }, 1_000);
  signal.addEventListener("abort", () => clearInterval(tick));
}

/** Whether a row that has just changed belongs into what is shown. */
export function fits(row, filter) {
  const { q } = filter;
  const text = [row.title, row.execution_id, row.error, row.agent_type, row.model].join(" ").toLowerCase();
  return (!filter.status || filter.status.split(",").includes(row.status))
    && (!filter.kind || row.kind === filter.kind)
    && (!filter.agent_type || row.agent_type === filter.agent_type)
    && (!filter.user_id || row.user_id === filter.user_id)
    && (!q || text.includes(q.toLowerCase()));
}

function tr(row) {
  const href = `#/executions/${row.execution_id}`;
  const since = new Date(row.created_at).getTime();
  const open = !row.finished_at;
  const { prompt_tokens: read, completion_tokens: written, tokens } = row.usage ?? {};
  const none = () => h("span.quiet", {}, "–");
  const element = h("tr", { class: FAILED.includes(row.status) ? "is-failed" : "" },
    h("td.state", {}, status(row.status)),
    h("td.title", {}, h("div", {},
      h("a", { href }, line(row.title, 200) || words(row.kind)),
      row.parent && tag("child"),
      row.error && h("span.error", { title: row.error }, line(row.error, 120)),
      h("span.id.mono", {}, short(row.execution_id)),
    )),
    h("td.agent", {}, row.agent_type || words(row.kind)),
    h("td.model", {}, row.model || none()),
    h("td.user", {}, row.user_id || none()),
    h("td.number.tokens", { title: tokens && `${count(read)} read, ${count(written)} written` },
      tokens ? count(tokens) : none(),
    ),
    h("td.number.calls", {}, row.tool_calls ? count(row.tool_calls) : none()),
    h("td.number.took", open ? { "data-since": since } : {}, duration(open ? Date.now() - since : row.duration_ms)),
    h("td.number.begun", {},
      h("time", { datetime: row.created_at, title: moment(row.created_at) }, ago(row.created_at)),
    ),
  );
  element.addEventListener("click", (event) => {
    if (!event.target.closest("a")) location.hash = href;
  });
  return element;
}

function filters(filter, changed, signal) {
  let typing;
  const text = (name, attributes) => {
    const input = h("input", { type: "search", value: filter[name], ...attributes });
    input.addEventListener("input", () => {
      filter[name] = input.value.trim();
      clearTimeout(typing);
      typing = setTimeout(changed, TYPING);
    });
    return input;
  };
  const select = (name, label, options) => {
    const element = choice(name, options, filter[name], { "aria-label": label });
    element.addEventListener("change", () => {
      filter[name] = element.value;
      changed();
    });
    return element;
  };
  const search = text("q", { placeholder: "Find by text", "aria-label": "Find by text" });
  const user = text("user_id", { placeholder: "User", "aria-label": "User", class: "small" });
  const kind = select("kind", "Kind", KINDS);
  const chosen = filter.agent_type ? [[filter.agent_type, filter.agent_type]] : [];
  const agent = select("agent_type", "Agent type", [["", "Any agent"], ...chosen]);
  get("/internal/agents", signal).then(({ agents }) => {
    const others = agents.map((one) => one.name).filter((name) => name !== filter.agent_type);
    agent.append(...others.map((name) => h("option", { value: name }, name)));
  }, () => {});
  const tabs = h("div.segments", { role: "group", "aria-label": "Status" });
  const press = (value) => {
    filter.status = value;
    for (const [i, [other]] of STATES.entries()) tabs.children[i].ariaPressed = String(other === value);
  };
  tabs.append(...STATES.map(([value, name]) =>
    h("button", { type: "button", onclick: () => { press(value); changed(); } }, name)));
  press(filter.status);
  const find = h("div.find", {}, icon("search"), search, h("kbd", { "aria-hidden": "true" }, "/"));
  return { bar: h("div.filters", { role: "search" }, tabs, find, kind, agent, user), search };
}

function nothing(filter) {
  if (Object.values(filter).some(Boolean)) {
    return empty("Nothing matches",
      h("p", {}, "No execution fits all of these filters."),
      h("p", {}, h("a", { href: "#/executions" }, "Clear the filters")),
    );
  }
  const command = 'vlinders agent "Where is main defined?" --workspace DIR';
  const curl = [
    `curl -s ${location.origin}/internal/agent`,
    '     -H "X-Internal-Auth: $(cat DATA/secret)"',
    `     -d '{"agent_type": "coder", "instruction": "Where is main defined?", "workspace": "DIR"}'`,
  ].join(" \\\n");
  const snippet = (text) => h("div.snippet", {}, h("pre", {}, text), copyable(text, "Copy"));
  return empty("Nothing has been asked yet",
    h("p", {},
      "Every request becomes an execution and appears here the moment it is accepted. Make the first one here:",
    ),
    h("p", {},
      h("button.primary", { type: "button", onclick: newRequest }, icon("grant"), h("span", {}, "New request")),
    ),
    h("p", {}, "or from a shell:"), snippet(command), snippet(curl));
}

function byId() {
  const id = h("input",
    { name: "id", placeholder: "0192f0c1-7a3b-…", "aria-label": "Execution id", spellcheck: "false" },
  );
  return h("form.by-id", { onsubmit: (event) => {
    event.preventDefault();
    if (id.value.trim()) location.hash = `#/executions/${encodeURIComponent(id.value.trim())}`;
  } }, h("p", {},
    "One execution can be looked at all the same, by its id:",
  ), h("div.row", {}, id, h("button", {}, "Open")),
  h("p.quiet", {}, h("code", {}, "vlinders executions"), " lists them."));
}

function skeleton() {
  return h("div.skeleton", { "aria-label": "Reading" }, Array.from({ length: 8 }, () => h("i")));
}
