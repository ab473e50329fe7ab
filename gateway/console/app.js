// The frame: signing in, navigation, routes, shortcuts. Pages are modules; each is given a place and a signal that
// falls when it is left.

import { health, session, takes } from "./api.js";
import { fill, h, icon } from "./dom.js";
import deadLetters from "./dead_letters.js";
import execution from "./execution.js";
import executions from "./executions.js";
import healthPage from "./health.js";
import models from "./models.js";
import workers from "./workers.js";
import { every, field } from "./ui.js";

const PAGES = [
  { path: "executions", name: "Executions", glyph: "executions", key: "e", page: executions, one: execution },
  { path: "workers", name: "Workers", glyph: "workers", key: "w", page: workers },
  { path: "models", name: "Models", glyph: "models", key: "m", page: models },
  { path: "dead-letters", name: "Dead letters", glyph: "letters", key: "d", page: deadLetters, one: deadLetters },
  { path: "health", name: "Health", glyph: "health", key: "h", page: healthPage },
];
/** What follows on each, and what it is called. */
const THEMES = { auto: ["light", "As the system"], light: ["dark", "Light"], dark: ["auto", "Dark"] };
const GLYPHS = { auto: "auto", light: "sun", dark: "moon" };
/** How often the frame looks whether the gateway is well, milliseconds. */
const LOOK_EVERY = 5_000;
/** How long after `g` a second key counts, milliseconds. */
const CHORD = 1_200;

const app = document.getElementById("app");
let leave = new AbortController();
let pageKeys = [];
/** When `g` was pressed last. */
let chord = 0;

session.forbidden = () => {
  if (!session.there) return;
  session.forget();
  signIn("The gateway does not take this secret any more.");
};

// --- Signing in

function signIn(said = "") {
  leave.abort();
  app.firstElementChild?.gone?.abort();
  const secret = h("input", { type: "password", name: "secret", autocomplete: "current-password", required: true,
    "aria-describedby": "said", spellcheck: "false" });
  const keep = h("input", { type: "checkbox", name: "keep" });
  const problem = h("p.said", { id: "said", role: "alert" }, said);
  const enter = h("button.primary", { type: "submit" }, "Open the console");
  const form = h("form.door", {},
    h("div.brand", {}, butterfly(), h("span", {}, "Vlinders")),
    h("h1", {}, "Sign in"),
    h("p.note", {}, "Enter the secret of this server. ", h("code", {}, "vlinders up"), " prints where it lies: ",
      h("code", {}, "DATA/secret"), "."),
    field("Secret", secret), problem,
    h("label.check", {}, keep, h("span", {}, "Keep it in this browser"),
      h("small", {}, "Without this it is forgotten with the tab.")),
    enter);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    enter.disabled = true;
    try {
      if (!(await takes(secret.value.trim()))) throw new Error("This is not the secret of this server.");
      session.keep(secret.value.trim(), keep.checked);
      frame();
    } catch (error) {
      const text = error instanceof TypeError ? "The gateway does not answer. Is it running?" : error.message;
      problem.textContent = text;
      secret.setAttribute("aria-invalid", "true");
      secret.select();
    } finally {
      enter.disabled = false;
    }
  });
  document.title = "Sign in · Vlinders";
  fill(app, h("main.gate", {}, form));
  secret.focus();
}

// --- The frame

function frame() {
  const links = PAGES.map((p) =>
    h("a", { href: `#/${p.path}`, title: `${p.name} (g ${p.key})` },
      icon(p.glyph), h("span", {}, p.name), h("b.badge", { hidden: true }),
    ));
  const state = h("span.state", { role: "status" });
  const main = h("main", { id: "main", tabindex: "-1" });
  const skip = h("a.skip", { href: "#main" }, "Skip to the content");
  skip.addEventListener("click", (event) => {
    event.preventDefault();
    main.focus();
  });
  const tool = (name, glyph, onclick, hint = "") =>
    h("button.bare", { type: "button", onclick, title: name + hint, "aria-label": name }, icon(glyph));
  const home = { href: "#/executions", "aria-label": "Vlinders, to the executions" };
  const shell = h("div.shell", {},
    skip,
    h("aside", {},
      h("a.brand", home, butterfly(), h("span", {}, "Vlinders")),
      h("nav", { "aria-label": "Pages" }, links),
      h("div.foot", {},
        state,
        h("div.tools", {},
          themeSwitch(), tool("Shortcuts", "keyboard", shortcuts, " (?)"), tool("Forget the secret", "leave", signOut),
        ),
      ),
    ),
    main,
  );
  fill(app, shell);
  const route = () => show(main, links);
  const gone = new AbortController();
  window.addEventListener("hashchange", route, { signal: gone.signal });
  document.addEventListener("keydown", keydown, { signal: gone.signal });
  shell.gone = gone;
  watch(state, links, gone.signal);
  route();
}

function signOut() {
  session.forget();
  signIn();
}

/** Looks after the gateway, for the line below the navigation and the number of dead letters. */
function watch(state, links, signal) {
  const letters = links[PAGES.findIndex((p) => p.path === "dead-letters")].querySelector(".badge");
  every(LOOK_EVERY, signal, async () => {
    let [tone, text] = ["bad", "gateway does not answer"];
    try {
      const now = await health(signal);
      [tone, text] = now.ready ? ["good", "ready"] : now.parts.nats.connected ? ["warn", "live, no model"] : [
        "bad", "no connection to NATS",
      ];
      const waiting = now.parts.dead_letters.waiting ?? 0;
      letters.hidden = waiting === 0;
      letters.textContent = waiting > 99 ? "99+" : String(waiting);
      letters.title = `${waiting} waiting`;
    } catch {
      // Said below.
    }
    if (state.textContent !== text) fill(state, h("i.dot", { class: tone, "aria-hidden": "true" }), text);
  });
}

function show(main, links) {
  leave.abort();
  leave = new AbortController();
  const [path, search = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, id] = path.split("/").map(decodeURIComponent);
  const found = PAGES.find((p) => p.path === name);
  if (!found) {
    history.replaceState(null, "", "#/executions");
    return show(main, links);
  }
  links.forEach((link, i) => {
    if (PAGES[i] === found) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  });
  pageKeys = [];
  const context = {
    main, id: id ?? null, params: new URLSearchParams(search), signal: leave.signal,
    title: (text) => { document.title = `${text} · Vlinders`; },
    key: (key, what, action) => pageKeys.push({ key, what, action }),
    /** Notes in the address what is shown, so that the link leads here again; not once another page is shown. */
    note: (values) => {
      if (context.signal.aborted) return;
      const text = new URLSearchParams(
        Object.entries(values).filter(([, v]) => v !== null && v !== undefined && v !== "")
      ).toString();
      history.replaceState(null, "", `#/${path}${text ? `?${text}` : ""}`);
    },
  };
  main.replaceChildren();
  main.scrollTop = 0;
  window.scrollTo(0, 0);
  context.title(found.name);
  (id && found.one ? found.one : found.page)(context);
}

// --- Shortcuts

function keydown(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  const typing = event.target.closest("input:not([type=range], [type=checkbox], [type=radio]), textarea, select");
  if (typing) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (document.querySelector("dialog[open]")) return;
  const page = Date.now() - chord < CHORD ? PAGES.find((p) => p.key === event.key) : null;
  chord = event.key === "g" ? Date.now() : 0;
  const own = pageKeys.find((k) => k.key === event.key);
  if (page) location.hash = `#/${page.path}`;
  else if (event.key === "?") shortcuts();
  else if (event.key === "t") nextTheme();
  else if (own) own.action();
  else return;
  event.preventDefault();
}

function shortcuts() {
  const rows = (keys) => keys.map(([key, what]) =>
    h("div", {}, h("dt", {}, key.split(" ").map((k) => h("kbd", {}, k))), h("dd", {}, what)));
  const dialog = h("dialog.shortcuts", { "aria-labelledby": "shortcuts-title" },
    h("h2", { id: "shortcuts-title" }, "Shortcuts"),
    h("div.columns", {},
      pageKeys.length > 0 && h("section", {},
        h("h3", {}, "On this page"), h("dl", {}, rows(pageKeys.map((k) => [k.key, k.what]))),
      ),
      h("section", {}, h("h3", {}, "Everywhere"), h("dl", {},
        rows(
          [
            ...PAGES.map((p) => [`g ${p.key}`, p.name]), ["t", "Light, dark, or as the system"],
            ["?", "These shortcuts"], ["Esc", "Close, or leave a field"],
          ]
        )))),
    h("form", { method: "dialog" }, h("button", { autofocus: true }, "Close")));
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

// --- Light and dark

function theme() {
  return document.documentElement.dataset.theme ?? "auto";
}

function themeSwitch() {
  const button = h("button.bare.theme", { type: "button", onclick: nextTheme });
  dress(button);
  return button;
}

function dress(button) {
  const name = `Colours: ${THEMES[theme()][1].toLowerCase()}`;
  fill(button, icon(GLYPHS[theme()]));
  button.title = `${name} (t)`;
  button.setAttribute("aria-label", name);
}

function nextTheme() {
  const [next] = THEMES[theme()];
  if (next === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  localStorage.setItem("vlinders.theme", next);
  const button = document.querySelector("button.theme");
  if (button) dress(button);
}

function butterfly() {
  return h("img", { src: "icon.svg", alt: "", width: "20", height: "20" });
}

if (session.there) frame();
else signIn();
