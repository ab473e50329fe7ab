// Building what is on the page. No markup is ever made from text, so nothing that a log holds can become code.

const SVG = "http://www.w3.org/2000/svg";

/** An element: `h("button.primary", {onclick}, "Allow")`. Missing children are left out; lists are flattened. */
export function h(tag, attributes = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length > 0) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) set(element, key, value);
  element.append(...nodes(children));
  return element;
}

function set(element, key, value) {
  if (value === null || value === undefined || value === false) return;
  if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
  else if (key === "class") element.classList.add(...value.split(" ").filter(Boolean));
  else if (key === "style") for (const [name, v] of Object.entries(value)) element.style.setProperty(name, v);
  else if (key === "value") element.value = value;
  else element.setAttribute(key, value === true ? "" : value);
}

function nodes(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (child instanceof Node ? child : String(child)));
}

/** Replaces what an element holds. */
export function fill(element, ...children) {
  element.replaceChildren(...nodes(children));
  return element;
}

/**
 * Makes the children of `container` those of `items`, in their order, and leaves alone what did not change, so that
 * focus, selection and what is unfolded stay. `sign` says what a child depends on.
 */
export function keyed(container, items, key, sign, make) {
  const there = new Map([...container.children].map((child) => [child.dataset.key, child]));
  let before = container.firstElementChild;
  for (const item of items) {
    const [k, signature] = [String(key(item)), String(sign(item))];
    let child = there.get(k);
    there.delete(k);
    if (!child || child.dataset.sign !== signature) {
      const fresh = make(item, child);
      fresh.dataset.key = k;
      fresh.dataset.sign = signature;
      if (child) {
        const focused = child.contains(document.activeElement);
        if (before === child) before = fresh;
        child.replaceWith(fresh);
        if (focused) (
          fresh.matches("a, button, [tabindex]") ? fresh : fresh.querySelector("a, button, [tabindex]")
        )?.focus();
      }
      child = fresh;
    }
    if (child === before) before = before.nextElementSibling;
    else container.insertBefore(child, before);
  }
  for (const child of there.values()) child.remove();
}

// Drawn on a grid of 16, strokes of 1.5.
const ICONS = {
  executions: "M2.5 4h7M2.5 8h11M2.5 12h5",
  workers: "M2.5 3h11v4h-11zM2.5 9h11v4h-11zM5 5h.01M5 11h.01",
  models: "M8 2l5.5 3v6L8 14l-5.5-3V5zM2.7 5.1L8 8l5.3-2.9M8 8v5.8",
  letters: "M2.5 4h11v8.5h-11zM2.5 4.5L8 9l5.5-4.5",
  health: "M1.5 8h3l2-4.5 3 9 2-4.5h3",
  search: "M7 12a5 5 0 100-10 5 5 0 000 10zM10.6 10.6L14 14",
  check: "M3 8.5l3.5 3.5L13 4.5",
  cross: "M4 4l8 8M12 4l-8 8",
  pause: "M5.5 3.5v9M10.5 3.5v9",
  play: "M5 3.5v9l7.5-4.5z",
  fork: "M4.5 5.5v5M4.5 5.5a1.5 1.5 0 100-3 1.5 1.5 0 000 3zM4.5 13.5a1.5 1.5 0 100-3 1.5 1.5 0 000 3z"
    + "M11.5 5.5a1.5 1.5 0 100-3 1.5 1.5 0 000 3zM11.5 5.5c0 3-7 2-7 5",
  say: "M2.5 3h11v7.5h-6l-3 2.5v-2.5h-2z",
  grant: "M8 3v10M3 8h10",
  shield: "M8 1.8l5 2v4c0 3.2-2.1 5.4-5 6.4-2.9-1-5-3.2-5-6.4v-4zM5.7 8l1.7 1.7 3-3.4",
  right: "M6 3.5L10.5 8 6 12.5",
  left: "M10 3.5L5.5 8l4.5 4.5",
  copy: "M5.5 5.5h8v8h-8zM3.5 10.5h-1v-8h8v1",
  sun: "M8 11a3 3 0 100-6 3 3 0 000 6zM8 1.5v1M8 13.5v1M1.5 8h1M13.5 8h1"
    + "M3.4 3.4l.7.7M11.9 11.9l.7.7M3.4 12.6l.7-.7M11.9 4.1l.7-.7",
  moon: "M13.5 9.5A6 6 0 016.5 2.5a5.7 5.7 0 107 7z",
  auto: "M8 14A6 6 0 108 2a6 6 0 000 12zM8 2v12",
  keyboard: "M1.5 4h13v8h-13zM4 6.7h.01M6.7 6.7h.01M9.3 6.7h.01M12 6.7h.01M5 9.5h6",
  leave: "M9.5 2.5h-6v11h6M7 8h7M11.5 5.5L14 8l-2.5 2.5",
  warn: "M8 2.2l6.3 11H1.7zM8 6.5v3M8 11.4h.01",
  clock: "M8 14A6 6 0 108 2a6 6 0 000 12zM8 4.8V8l2.2 1.5",
};

/** An icon: decoration beside words, or with a name of its own on its button. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries({ viewBox: "0 0 16 16", class: "icon", "aria-hidden": "true" })) {
    svg.setAttribute(key, value);
  }
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** Runs `action` at most once a frame, however often it is asked for. */
export function soon(action) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; action(); });
  };
}
