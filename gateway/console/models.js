// Models: what each worker has and could have, the memory for it, and what is under way.

import { get, post } from "./api.js";
import { fill, h, keyed } from "./dom.js";
import { ago, bytes, count, duration } from "./format.js";
import { ask, button, choice, empty, every, field, meter, notice, status, tag, toast } from "./ui.js";

/** How often it looks: while something is under way, and otherwise; milliseconds. */
const BUSY_EVERY = 400;
const LOOK_EVERY = 3_000;
const COLUMNS = [
  ["Model", ""], ["State", ""], ["Device", ""], ["Window", "number"], ["Weights", "number"], ["Keys and values", "number"], ["", ""],
];
const TONES = { ready: "completed", known: "submitted", loading: "running", draining: "paused", failed: "failed" };

export default function models({ main, signal, key, title }) {
  title("Models");
  const list = h("div.stack");
  const place = h("div.place", {}, list);
  let workers = [];
  const change = h("button", { type: "button", onclick: () => exchange(workers, look) }, h("span", {}, "Switch…"));
  fill(main, h("header.page", {}, h("h1", {}, "Models"), h("div.end", {}, change)), place);

  const look = async () => {
    try {
      const found = await get("/internal/models", signal);
      workers = found.workers;
      const elsewhere = found.models.filter((m) => !m.workers);
      change.hidden = workers.length === 0;
      if (place.firstChild !== list) fill(place, list);
      const more = elsewhere.length > 0 ? [{ id: "elsewhere", models: elsewhere, elsewhere: true }] : [];
      const cards = [...workers, ...more];
      if (cards.length === 0) fill(list, nothing());
      else {
        list.querySelector(".empty")?.remove();
        const make = (w) => (w.elsewhere ? others(w.models) : card(w, look));
        keyed(list, cards, (w) => w.id, (w) => JSON.stringify(w), make);
      }
      return workers.some((w) => w.operations.some((o) => o.ended_at === null)) ? BUSY_EVERY : LOOK_EVERY;
    } catch (error) {
      if (!signal.aborted) fill(place, notice(error, "What models there are"));
      return LOOK_EVERY;
    }
  };
  key("r", "Look again", look);
  key("s", "Switch models", () => exchange(workers, look));
  every(LOOK_EVERY, signal, look);
}

function nothing() {
  const start = h("code", {}, "vlinders inference-worker --models PATH");
  return empty("No model can be had", h("p", {}, "No inference worker is there. Start one: ", start));
}

function card(worker, look) {
  const { memory } = worker;
  return h("article.card.wide", { "aria-label": worker.id },
    h("header", {},
      h("h2", {}, "Inference worker"), h("span.mono.quiet", {}, worker.id),
      h("span.quiet", {}, `${count(worker.slots)} slots`),
    ),
    memory && memory.max_bytes > 0 && memoryOf(memory),
    (worker.gpus ?? []).map(gpuOf),
    h("div.scroll", {},
      h("table.list.models", {},
        h("thead", {}, h("tr", {}, COLUMNS.map(([name, kind]) => h("th", { scope: "col", class: kind }, name)))),
        h("tbody", {}, worker.models.map((model) => row(worker, model, look))),
      ),
    ),
    worker.operations.length > 0 && h("section.operations", {},
      h("h3", {}, "Operations"),
      h("ol", {}, worker.operations.toReversed().slice(0, 8).map(operation)),
    ));
}

function memoryOf({ max_bytes: max, taken_bytes: taken, kept_bytes: kept }) {
  return h("div.memory", {},
    meter([[taken, ""], [kept, "soft"]], max, `${bytes(taken)} of ${bytes(max)} taken`),
    h("span", {},
      h("b", {}, bytes(taken)), ` of ${bytes(max)} for models`,
      kept > 0 && h("span.quiet", {}, `, ${bytes(kept)} kept of what was unloaded`),
    ),
  );
}

function gpuOf(gpu) {
  const busy = gpu.utilization === undefined ? "" : `, ${Math.round(gpu.utilization * 100)} % busy`;
  const used = `${bytes(gpu.memory_used_bytes)} of ${bytes(gpu.memory_total_bytes)}`;
  return h("div.memory", {},
    meter([[gpu.memory_used_bytes ?? 0, ""]], gpu.memory_total_bytes ?? 0, `GPU ${gpu.id}: ${used}`),
    h("span", {}, gpu.name, h("span.quiet", {}, ` ${used}${busy}`)),
  );
}

function row(worker, model, look) {
  const act = async (what, body = {}) => {
    await post(`/internal/models/${encodeURIComponent(model.name)}/${what}`, { worker: worker.id, ...body });
    toast(what === "load" ? `Loading ${model.name}` : `${model.name} finishes what waits for it, then it goes`);
    look();
  };
  const unload = async () => {
    const sure = await ask(`Unload ${model.name}?`, {
      action: "Unload", kind: "danger", note: "It is offered to nobody any more and finishes what waits for it.",
      fields: [
        h("label.check", {},
          h("input", { type: "checkbox", name: "force" }), h("span", {}, "Finish only what is in hand"),
          h("small", {}, "What is queued waits for another worker."),
        ),
      ],
    });
    if (sure) await act("unload", { force: sure.force === "on" });
  };
  const read = Math.round((model.progress ?? 0) * 100);
  return h("tr", {},
    h("th", { scope: "row" }, h("strong", {}, model.name), model.kind !== "chat" && tag(model.kind)),
    h("td", {},
      h("span.status", { class: `is-${TONES[model.state] ?? ""}` },
        h("i.dot", { "aria-hidden": "true" }), model.state === "known" ? "not loaded" : model.state,
      ),
      model.state === "loading" && meter([[read, ""]], 100, `${read} %`),
      model.reason && h("p.error", {}, model.reason),
    ),
    h("td", {}, model.device ?? "–"),
    h("td.number", {}, model.window ? count(model.window) : "–"),
    h("td.number", {}, model.weights_bytes ? bytes(model.weights_bytes) : "–"),
    h("td.number", {}, model.cache_bytes_max ? `up to ${bytes(model.cache_bytes_max)}` : "–"),
    h("td.actions", {},
      ["known", "failed"].includes(model.state) && button("Load", () => act("load"), { kind: "small" }),
      model.state === "ready" && button("Unload", unload, { kind: "small" }),
    ),
  );
}

function operation(one) {
  const ended = one.ended_at !== null;
  const tone = { done: "completed", failed: "failed" }[one.state] ?? "running";
  const took = ended && duration(new Date(one.ended_at) - new Date(one.started_at));
  return h("li", {},
    status(tone), h("span", {}, h("b", {}, one.what), ` ${one.from ? `${one.from} → ` : ""}${one.model}`),
    !ended && one.progress !== undefined && meter([[one.progress, ""]], 1, `${Math.round(one.progress * 100)} %`),
    h("span.quiet", {}, ended ? `${took}, ${ago(one.ended_at)}` : one.state),
    one.reason && h("p.error", {}, one.reason),
  );
}

function others(models) {
  const row = (model) => h("tr", {},
    h("th", { scope: "row" }, h("strong", {}, model.name), model.kind !== "chat" && tag(model.kind)),
    h("td.number", {}, `${count(model.window)} tokens`),
  );
  return h("article.card.wide", {},
    h("header", {}, h("h2", {}, "Loaded by workers that say no more")),
    h("div.scroll", {}, h("table.list.models", {}, h("tbody", {}, models.map(row)))),
  );
}

async function exchange(workers, look) {
  const all = workers.flatMap((w) => w.models);
  const names = (wanted) => [...new Set(all.filter(wanted).map((m) => m.name))].map((name) => [name, name]);
  const wanted = await ask("Switch models", {
    action: "Switch", note: "The new one is loaded, the old one finishes what waits for it and goes. No request fails.",
    fields: [
      h("div.pair", {},
        field("From", choice("from", names((m) => m.state === "ready"))),
        field("To", choice("to", names((m) => m.state !== "ready"))),
      )
    ],
  });
  if (!wanted) return;
  await post("/internal/models/switch", { from: wanted.from, to: wanted.to });
  toast(`Switching to ${wanted.to}`);
  look();
}
