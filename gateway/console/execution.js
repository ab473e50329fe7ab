// One execution: where it stands, its timeline, its conversation as it happens, its log, its state after any message,
// and what people may tell it.

import { Problem, get, post, stream } from "./api.js";
import { approvals, fork, mayTell } from "./control.js";
import { conversation } from "./conversation.js";
import { fill, h, icon, soon } from "./dom.js";
import { count, duration, line, moment, plural, words } from "./format.js";
import { inspector } from "./inspector.js";
import { journal } from "./journal.js";
import { Story } from "./spans.js";
import { stateView } from "./state.js";
import { button, copyable, executionLink, failed, notice, status, toast } from "./ui.js";
import { waterfall } from "./waterfall.js";

/** How often what is under way grows, milliseconds. */
const GROW_EVERY = 200;
const VERIFY = { glyph: "shield", title: "Decide everything again and compare (v)" };
const FORK = { glyph: "fork", title: "Another execution that begins where this one stood (f)" };
const TABS = [["talk", "Conversation"], ["span", "Effect"], ["state", "State"]];

export default function execution({ main, id, params, signal, key, note, title }) {
  const story = new Story();
  const live = new Map();
  let picked = params.get("effect");
  let tab = params.get("tab") ?? (params.has("at") ? "state" : picked ? "span" : "talk");
  let tokens = null;
  let proof = null;
  let first = params.has("at") ? Number(params.get("at")) : null;

  title(`Execution ${id.slice(-8)}`);
  const head = h("header.page.one");
  const asks = h("div.asks", { "aria-live": "polite" });
  const timeline = waterfall(pick);
  const talk = conversation(pick);
  const effect = inspector(id, signal);
  const log = journal({ state: showState, fork: (n) => fork(id, n, story) });
  const state = stateView(id, story, signal, (at) => { if (tab === "state") note({ tab, at }); });
  const places = { talk: talk.element, span: effect.element, state: state.element };
  const tabs = h("div.tabs", { role: "tablist", "aria-label": "What is shown", onkeydown: turn });
  for (const [name, text] of TABS) {
    const role = { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": "panel" };
    tabs.append(h("button", { ...role, onclick: () => choose(name) }, text));
  }
  const panel = h("div.panel", { id: "panel", role: "tabpanel", tabindex: "0" });
  const body = h("div.execution", {}, h("div.left", {}, asks, timeline.element, tabs, panel), log.element);
  fill(main, head, h("div.place", {}, body));
  fill(head, h("h1", {}, h("span.quiet", {}, "Reading the log…")));

  const draw = soon(() => {
    if (signal.aborted) return;
    drawHead();
    approvals(asks, id, story);
    timeline.draw(story, now(), picked);
    talk.draw(story, live);
    effect.draw(story, picked);
    state.draw();
  });

  choose(tab, false);

  function now() {
    return story.endedAt ?? Math.max(Date.now(), story.lastAt ?? 0);
  }

  function pick(name) {
    picked = name;
    choose("span");
    log.reveal(story.span(name)?.n);
    draw();
  }

  function choose(name, noted = true) {
    tab = name;
    for (const [i, [other]] of TABS.entries()) {
      tabs.children[i].ariaSelected = String(other === name);
      tabs.children[i].tabIndex = other === name ? 0 : -1;
    }
    panel.setAttribute("aria-labelledby", `tab-${name}`);
    if (panel.firstChild !== places[name]) fill(panel, places[name]);
    if (name === "state") {
      state.show(first);
      first = null;
    }
    if (noted) note({ tab: name === "talk" ? null : name, effect: name === "span" ? picked : null });
    draw();
  }

  /** Arrows go from tab to tab. */
  function turn(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    const to = (TABS.findIndex(([name]) => name === tab) + by + TABS.length) % TABS.length;
    choose(TABS[to][0]);
    tabs.children[to].focus();
  }

  function showState(n) {
    choose("state");
    state.show(n);
    panel.scrollIntoView({ block: "nearest", behavior: "smooth" });
  }

  function drawHead() {
    if (!story.request) return;
    const { shownStatus, usage, iterations, spans, model } = story;
    const sign = JSON.stringify([shownStatus, usage, iterations, spans.length, model, proof]);
    if (head.dataset.sign !== sign) {
      head.dataset.sign = sign;
      const asked = questionOf(story.request);
      fill(head,
        h("div.crumbs", {}, h("a", { href: "#/executions" }, "Executions"), icon("right"), copyable(id)),
        h("h1", { title: line(asked, 1_000) }, line(asked, 200)),
        h("div.end", {}, mayTell(id, story), button("Verify", verify, VERIFY), button("Fork", forkHere, FORK)),
        about(story, proof),
      );
    }
    head.querySelector(".took").textContent = duration(now() - story.createdAt);
  }

  function forkHere() {
    return fork(id, story.entries.at(-1)?.n ?? 0, story);
  }

  async function verify() {
    try {
      proof = await get(`/internal/executions/${id}/verify`, signal);
      if (proof.verified) toast("Every decision came out again, byte for byte");
      else toast("A decision does not come out again", "bad");
    } catch (error) {
      const absent = error instanceof Problem && error.absent;
      if (absent) toast("This gateway cannot verify; `vlinders replay ID --verify` can", "bad");
      else failed(error);
    }
    draw();
  }

  function listen() {
    if (tokens || story.ended) return;
    tokens = new AbortController();
    stream(`/internal/executions/${id}/stream`, {
      signal: AbortSignal.any([signal, tokens.signal]),
      event: (name, data, last) => {
        if (name === "done" || name === "error") return false;
        if (name !== "token" && name !== "restart") return true;
        const effect = last.slice(0, last.lastIndexOf("."));
        live.set(effect, name === "token" ? (live.get(effect) ?? "") + data.text : data.text);
        draw();
        return true;
      },
    }).catch(() => {});
  }

  stream((last) => `/internal/executions/${id}/events?follow=true&from=${last === null ? 0 : Number(last) + 1}`, {
    signal,
    event: (name, data) => {
      if (name === "error") {
        failed(new Problem(data.status, data));
        return false;
      }
      if (!story.add(data)) return !story.ended;
      log.add(data, story);
      draw();
      if (story.ended) tokens?.abort();
      else if (data.type !== "execution.submitted") listen();
      return !story.ended;
    },
  }).catch((error) => {
    if (signal.aborted) return;
    fill(head, h("div.crumbs", {}, h("a", { href: "#/executions" }, "Executions")), h("h1", {}, "Not found"));
    fill(main.querySelector(".place"), notice(error, "This execution"));
  });
  const grow = setInterval(() => { if (!story.ended && story.request && !document.hidden) draw(); }, GROW_EVERY);
  signal.addEventListener("abort", () => clearInterval(grow));

  key("1", "Conversation", () => choose("talk"));
  key("2", "Effect", () => choose("span"));
  key("3", "State", () => choose("state"));
  key("j", "Next effect", () => step(1));
  key("k", "Effect before", () => step(-1));
  key("[", "State one message earlier", () => { choose("state"); state.step(-1); });
  key("]", "State one message later", () => { choose("state"); state.step(1); });
  key("a", "To the call that waits", () => asks.querySelector("button")?.focus());
  key("p", "Pause, or go on", () => {
    const what = story.status === "paused" ? "resume" : "pause";
    if (!story.ended) post(`/internal/executions/${id}/${what}`, { by: "console" }).catch(failed);
  });
  key("v", "Verify", verify);
  key("f", "Fork from the newest message", forkHere);
  key("u", "Back to the list", () => { location.hash = "#/executions"; });

  function step(by) {
    const at = story.spans.findIndex((span) => span.effect === picked);
    const to = story.spans[
      at < 0 ? (by > 0 ? 0 : story.spans.length - 1) : Math.min(Math.max(at + by, 0), story.spans.length - 1)
    ];
    if (to) pick(to.effect);
  }
}

/** What was asked, in one text. */
function questionOf(request) {
  const asked = (request.messages ?? []).filter((message) => message.role === "user").at(-1)?.content;
  const call = request.call && `${request.call.function.name} ${request.call.function.arguments}`;
  return asked || call || words(request.kind);
}

/** The strip below the title: where it stands, and what it belongs to. */
function about(story, proof) {
  const { request, usage } = story;
  const children = story.spans.filter((span) => span.child);
  const kinds = [request.kind, request.agent].filter(Boolean);
  const tokens = `${count(usage.prompt_tokens)} in · ${count(usage.completion_tokens)} out`;
  const known = `${count(story.cachedTokens)} of those read were known before`;
  return h("dl.strip", {},
    pair("Status", status(story.shownStatus)),
    pair("Kind", [...new Set(kinds)].join(" · ")),
    story.model && pair("Model", story.model),
    pair("Took", h("span.took")),
    usage.tokens > 0 && pair("Tokens", h("span", { title: known }, tokens)),
    story.iterations > 0 && pair("Turns", count(story.iterations)),
    story.toolCalls > 0 && pair("Tool calls", count(story.toolCalls)),
    pair("Begun", h("time", { datetime: new Date(story.createdAt).toISOString() }, moment(story.createdAt))),
    request.user_id && pair("User", request.user_id),
    request.workspace && pair("Workspace", h("span.mono", { title: request.workspace }, request.workspace)),
    request.parent && pair("Parent", executionLink(request.parent.exec)),
    request.conversation_id && pair("Continues", executionLink(request.conversation_id)),
    children.length > 0 && pair("Children",
      children.map((span, i) => [i > 0 && ", ", executionLink(span.child, span.name)]),
    ),
    proof && pair("Proof", proofOf(proof)),
  );
}

function pair(name, value) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value));
}

function proofOf(proof) {
  if (!proof.verified) {
    const where = `decision ${proof.decision ?? "?"} differs`;
    return h("span.status.is-failed", { title: String(proof.difference ?? "") }, icon("cross"), where);
  }
  const hash = h("span.mono.quiet", {}, (proof.final_hash ?? "").slice(0, 12));
  return h("span.status.is-completed", { title: proof.final_hash },
    icon("check"), plural(proof.decisions, "decision"), hash,
  );
}
