// What people tell an execution: allow, edit or deny a call, pause, go on, say more, grant more, cancel, fork.

import { get, post } from "./api.js";
import { h, icon, keyed } from "./dom.js";
import { clock, words } from "./format.js";
import { tree } from "./json.js";
import { headline } from "./spans.js";
import { ask, button, choice, failed, field, toast } from "./ui.js";

const BY = "console";
const DIMENSIONS = ["iterations", "tokens", "tokens_in", "tokens_out", "tool_calls", "children"];

/** Buttons for what would have an effect now. */
export function mayTell(id, story) {
  if (story.ended) return [];
  const tell = async (what, body, said) => {
    await post(`/internal/executions/${id}/${what}`, { by: BY, ...body });
    toast(said);
  };
  const paused = story.status === "paused";
  return [
    paused
      ? button("Resume", () => tell("resume", {}, "It goes on"), { glyph: "play", kind: "primary", title: "Go on (p)" })
      : button("Pause", () => tell("pause", {}, "What is open finishes, then it waits"),
        { glyph: "pause", title: "Let open work finish, then wait (p)" },
      ),
    story.request?.kind !== "tool" && button("Say", async () => {
      const said = await ask("Say something", {
        note: "The next inference reads it.", action: "Say it",
        fields: [field("Text", h("textarea", { name: "text", rows: "4", required: true, autofocus: true }))],
      });
      if (said) await tell("messages", { text: said.text }, "Said");
    }, { glyph: "say" }),
    story.request?.kind !== "tool" && button("Grant", async () => {
      const granted = await ask("Grant more", {
        action: "Grant",
        fields: [h("div.pair", {}, field("What", choice("dimension", DIMENSIONS.map((d) => [d, words(d)]))),
          field("How much more",
            h("input", { name: "amount", type: "number", min: "1", value: "4", required: true }),
          ))],
      });
      if (granted) await tell("grant", { dimension: granted.dimension, amount: Number(granted.amount) }, "Granted");
    }, { glyph: "grant" }),
    button("Cancel", async () => {
      const wanted = await ask("Cancel this execution?", {
        action: "Cancel it", kind: "danger",
        fields: [
          h("fieldset", {}, h("legend", {}, "How"),
            h("label.check", {},
              h("input", { type: "radio", name: "mode", value: "now", checked: true }), h("span", {}, "Now"),
              h("small", {}, "What is open is stopped."),
            ),
            h("label.check", {},
              h("input", { type: "radio", name: "mode", value: "graceful" }), h("span", {}, "Gracefully"),
              h("small", {}, "What is open finishes, nothing more is asked for."),
            )),
          field("Reason", h("input", { name: "reason", placeholder: "for people, may be left out" })),
        ],
      });
      if (wanted) await tell("cancel", { mode: wanted.mode, reason: wanted.reason || undefined }, "Cancelled");
    }, { glyph: "cross", kind: "danger" }),
  ];
}

/** Begins another execution where this one stood after message `at`. */
export async function fork(id, at, story) {
  const models = await get("/internal/models").then(
    (found) => found.models.filter((m) => m.kind !== "embedding").map((m) => m.name), () => [],
  );
  const entry = story.entries[at];
  const wanted = await ask(`Fork after message ${at}`, {
    note: `${entry ? headline(entry) : ""}: another execution begins with what this one's model would read then.`,
    action: "Fork",
    fields: [
      field("Say next",
        h("textarea", { name: "message", rows: "3", autofocus: true }), "Needed where the model has answered already.",
      ),
      field("Model",
        choice(
          "model",
          [["", `the same (${story.model || "none"})`], ...models.filter((m) => m !== story.model).map((m) => [m, m])],
        ),
      ),
    ],
  });
  if (!wanted) return;
  try {
    const view = await post(`/internal/executions/${id}/fork`,
      { at, model: wanted.model || undefined, message: wanted.message || undefined },
    );
    location.hash = `#/executions/${view.execution_id}`;
    toast("This is the fork");
  } catch (error) {
    failed(error);
  }
}

/** Calls that wait for a person, each with what can be said about it. */
export function approvals(place, id, story) {
  keyed(place, story.approvals, (span) => span.effect, (span) => `${span.approval.from}`, (span) => asking(id, span));
}

function asking(id, span) {
  const edit = h("textarea.mono", { rows: "6", "aria-label": "Arguments as JSON", spellcheck: "false", hidden: true });
  const shown = h("div", {}, tree(span.arguments ?? {}, 3));
  const reason = h("input",
    { name: "reason", placeholder: "Reason, if there is one", "aria-label": "Reason" },
  );
  const problem = h("p.error", { role: "alert", hidden: true });
  const word = async (verdict) => {
    const body = { effect: span.effect, verdict, by: BY, reason: reason.value.trim() || undefined };
    if (verdict === "edit") {
      try {
        body.arguments = JSON.parse(edit.value);
      } catch (error) {
        problem.textContent = `This is not JSON: ${error.message}`;
        problem.hidden = false;
        edit.focus();
        return;
      }
    }
    await post(`/internal/executions/${id}/approve`, body);
    toast({ allow: "Allowed", edit: "Allowed with other arguments", deny: "Denied" }[verdict]);
  };
  const allow = button("Allow", () => word(edit.hidden ? "allow" : "edit"), { glyph: "check", kind: "primary" });
  const change = h("button", { type: "button" }, h("span", {}, "Edit"));
  change.addEventListener("click", () => {
    edit.hidden = !edit.hidden;
    shown.hidden = !edit.hidden;
    edit.value = JSON.stringify(span.arguments ?? {}, null, 2);
    allow.querySelector("span").textContent = edit.hidden ? "Allow" : "Allow as edited";
    change.firstChild.textContent = edit.hidden ? "Edit" : "As it was";
    if (!edit.hidden) edit.focus();
  });
  return h("section.asking", { "aria-label": `${span.name} waits for a person` },
    h("header", {}, icon("clock"), h("h2", {}, "May ", h("code", {}, span.name), " be carried out?"),
      h("span.quiet", {}, `denied at ${clock(span.approval.expires)} if nobody says anything`)),
    shown, edit, problem, reason,
    h("div.row", {}, allow, change, button("Deny", () => word("deny"), { glyph: "cross", kind: "danger" })));
}
