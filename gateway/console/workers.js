// Who works here and what waits for them: the workers with what they hold, the streams with their consumers.

import { get } from "./api.js";
import { fill, h, icon, keyed } from "./dom.js";
import { ago, bytes, count, duration, plural, words } from "./format.js";
import { empty, every, executionLink, meter, notice, tag } from "./ui.js";

/** How often it looks, milliseconds. */
const LOOK_EVERY = 2_000;
/** Slots drawn of a worker, and effects that it holds which are named. */
const CELLS = 64;
const HOLDS = 6;
const COLUMNS = ["Stream", "Messages", "Size", "Oldest", "Waiting", "In hand", "Redelivered"];
const GROUPS = [
  ["log", "The log"], ["jobs", "Jobs"], ["tokens", "Tokens"], ["dead_letters", "Dead letters"], ["bucket", "Buckets"],
];

export default function workers({ main, signal, key, title }) {
  title("Workers and queues");
  const list = h("div.cards");
  const queues = h("div");
  const lists = { workers: h("div.place", {}, list), queues: h("div.place", {}, queues) };
  const opened = new Set();
  const summary = h("span.quiet");
  fill(main,
    h("header.page", {}, h("h1", {}, "Workers"), summary), lists.workers,
    h("header.page.second", {}, h("h1", {}, "Queues and streams")), lists.queues);

  const look = async () => {
    await Promise.all([
      read("/internal/workers", lists.workers, list, "The list of workers", ({ workers }) => {
        const busy = workers.reduce((sum, w) => sum + (w.holds?.length ?? 0), 0);
        const slots = workers.reduce((sum, w) => sum + w.slots, 0);
        summary.textContent = workers.length > 0 ? `${busy} of ${slots} slots at work` : "";
        const start = h("code", {}, "vlinders inference-worker --nats URL");
        if (workers.length === 0) fill(list, empty("Nobody works here", h("p", {}, "Start a worker: ", start)));
        else {
          list.querySelector(".empty")?.remove();
          keyed(list, workers, (w) => w.id, (w) => JSON.stringify(w), card);
        }
      }),
      read(
        "/internal/queues", lists.queues, queues, "What the streams hold",
        ({ streams }) => fill(queues, table(streams, opened, look)),
      ),
    ]);
  };

  async function read(path, place, content, what, draw) {
    try {
      const found = await get(path, signal);
      if (place.firstChild !== content) fill(place, content);
      draw(found);
    } catch (error) {
      if (!signal.aborted) fill(place, notice(error, what));
    }
  }

  key("r", "Look again", look);
  every(LOOK_EVERY, signal, look);
}

function card(worker) {
  const { holds, memory, sandbox, vectors } = worker;
  const offers = worker.role === "tool" ? worker.tools : worker.models.map((m) => m.name);
  const busy = holds?.length ?? 0;
  const cells = Array.from(
    { length: Math.min(worker.slots, CELLS) }, (_, i) => h("i", { class: i < busy ? "busy" : "" }),
  );
  return h("article.card.worker", { class: `is-${worker.role}`, "aria-label": worker.id },
    h("header", {},
      h("h2", {}, `${words(worker.role)} worker`), h("span.mono.quiet", {}, worker.id),
      h("span.version.quiet", {}, `v${worker.version}`),
    ),
    h("div.slots", {},
      h("div.cells", { "aria-hidden": "true" }, cells),
      h("span", {}, holds === null ? "does not answer" : `${busy} of ${plural(worker.slots, "slot")}`),
    ),
    busy > 0 && h("ul.holds", {}, holds.slice(0, HOLDS).map(held)),
    offers.length > 0 && h("p.offers", {}, offers.map((name) => tag(name))),
    h("dl.lines", {},
      memory && memory.max_bytes > 0 && pair("Memory", memoryOf(memory)),
      sandbox && pair("Box", sandbox.refused ? h("span.error", {}, sandbox.refused) : boxOf(sandbox)),
      sandbox?.commands_refused && pair("Commands", h("span.error", {}, sandbox.commands_refused)),
      vectors && pair("Vectors", vectorsOf(vectors)),
      (worker.refused ?? []).map((r) => pair("Refused", h("span.error", {}, `${r.file}: ${r.reason}`))),
      (worker.gpus ?? []).map((gpu) => pair(`GPU ${gpu.id}`, gpu.name)),
    ),
  );
}

function held(hold) {
  return h("li", {},
    executionLink(hold.execution_id), h("span.mono", {}, hold.effect),
    hold.attempt > 1 && tag(`attempt ${hold.attempt}`, "warn"),
  );
}

function memoryOf({ max_bytes: max, taken_bytes: taken, kept_bytes: kept }) {
  const text = `${bytes(taken)} of ${bytes(max)}`;
  return [meter([[taken, ""], [kept, "soft"]], max, text), text];
}

function boxOf({ tier, enforced }) {
  return [tier, h("span.quiet", {}, ` ${enforced.join(", ")}`)];
}

function vectorsOf({ store, model, trouble }) {
  return [store, model && h("span.quiet", {}, ` by ${model}`), trouble && h("p.quiet", {}, trouble)];
}

function pair(name, value) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value));
}

// --- Queues

function table(streams, opened, again) {
  const groups = GROUPS.map(([group, name]) => {
    const all = streams.filter((stream) => stream.group === group);
    if (all.length === 0) return null;
    if (all.length === 1) return h("tbody", {}, rows(all[0], false));
    return h("tbody", {},
      together(group, name, all, opened, again), opened.has(group) && all.map((stream) => rows(stream, true)),
    );
  });
  return h("div.scroll", {},
    h("table.list.queues", {},
      h("thead", {},
        h("tr", {}, COLUMNS.map((name, i) => h("th", { scope: "col", class: i > 0 ? "number" : "" }, name))),
      ),
      groups,
    ),
  );
}

/** Many streams of one purpose as one row, which opens. */
function together(group, name, streams, opened, again) {
  const sum = (field) => streams.reduce((total, stream) => total + stream[field], 0);
  const toggle = () => {
    if (!opened.delete(group)) opened.add(group);
    again();
  };
  const fold = { type: "button", "aria-expanded": String(opened.has(group)), onclick: toggle };
  return h("tr.group", {},
    h("th", { scope: "row" },
      h("button.link.fold", fold, icon("right"), name), h("span.quiet", {}, ` ${streams.length} streams`),
      // Streams of a kind have one purpose; buckets and job queues have each their own.
      group === "log" && h("p.purpose", {}, streams[0].purpose),
    ),
    sizes(
      { messages: sum("messages"), bytes: sum("bytes"), first_at: oldest(streams.map((stream) => stream.first_at)) }
    ),
    progress(streams.flatMap((stream) => stream.consumers)),
  );
}

function rows(stream, nested) {
  const { consumers } = stream;
  // One consumer needs no row of its own: this one tells how far it is.
  const only = consumers.length === 1 ? consumers[0] : null;
  const about = [stream.storage];
  if (stream.age_max_s) about.push(`for ${duration(stream.age_max_s * 1e3)}`);
  if (only) about.push(`read by ${only.name}`);
  const own = h("tr", { class: nested ? "nested" : "" },
    h("th", { scope: "row", title: only?.purpose },
      h("span.mono", {}, stream.name), h("span.quiet", {}, ` ${about.join(", ")}`),
      !(nested && stream.group === "log") && h("p.purpose", {}, stream.purpose),
    ),
    sizes(stream), progress(consumers),
  );
  return [own, consumers.length > 1 && consumers.map((one) => consumer(one, nested))];
}

function consumer(one, nested) {
  return h("tr.consumer", { class: nested ? "nested" : "" },
    h("th", { scope: "row" }, h("span.mono", {}, one.name), h("p.purpose", {}, one.purpose)),
    h("td"), h("td"), h("td.number", { title: "the oldest message that is not finished" }, since(one.oldest_at)),
    progress([one]),
  );
}

function sizes(stream) {
  const of = (max, shown) => max && h("span.quiet", {}, ` of ${shown(max)}`);
  return [
    h("td.number", {}, count(stream.messages), of(stream.messages_max, count)),
    h("td.number", {}, bytes(stream.bytes), of(stream.bytes_max, bytes)),
    h("td.number", {}, since(stream.first_at)),
  ];
}

function progress(consumers) {
  return [["pending", ""], ["ack_pending", ""], ["redelivered", "warn"]].map(([field, tone]) => {
    if (consumers.length === 0) return h("td.number.quiet", {}, "–");
    const number = consumers.reduce((total, one) => total + one[field], 0);
    return h("td.number", { class: number > 0 ? tone : "quiet" }, count(number));
  });
}

function oldest(moments) {
  return moments.filter(Boolean).sort()[0] ?? null;
}

function since(moment) {
  return moment ? ago(moment) : "–";
}
