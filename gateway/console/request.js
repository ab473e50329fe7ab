// Asking for something from here: a chat, or an agent of any type.

import { begin, get } from "./api.js";
import { h } from "./dom.js";
import { ask, choice, failed, field } from "./ui.js";

/** Asks what is wanted, sends it, and goes to the execution that it became. */
export async function newRequest() {
  const [agents, models] = await Promise.all([
    get("/internal/agents").then((found) => found.agents.map((a) => a.name), () => []),
    get("/internal/models").then(
      (found) => found.models.filter((m) => m.kind !== "embedding").map((m) => m.name), () => [],
    ),
  ]);
  const last = sessionStorage.getItem("vlinders.workspace") ?? "";
  const wanted = await ask("New request", {
    action: "Send",
    fields: [
      field("What should be done?", h("textarea", { name: "text", rows: "4", required: true, autofocus: true })),
      h("div.pair", {},
        field("Who",
          choice(
            "who",
            [["", "the model alone (chat)"], ...agents.filter((a) => a !== "chat").map((a) => [a, `agent: ${a}`])],
          ),
        ),
        field("Model", choice("model", [["", "the first that fits"], ...models.map((m) => [m, m])]))),
      field("Workspace",
        h("input",
          {
            name: "workspace", value: last,
            placeholder: "for agents: a directory under an allowed root", spellcheck: "false",
          },
        ),
      ),
    ],
  });
  if (!wanted) return;
  sessionStorage.setItem("vlinders.workspace", wanted.workspace);
  const model = wanted.model || undefined;
  try {
    const id = wanted.who
      ? await begin(
        "/internal/agent",
        {
          agent_type: wanted.who, instruction: wanted.text, workspace: wanted.workspace || undefined,
          config: { model },
        },
      )
      : await begin("/internal/chat", { messages: [{ role: "user", content: wanted.text }], model });
    location.hash = `#/executions/${id}`;
  } catch (error) {
    failed(error);
  }
}
