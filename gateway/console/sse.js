// Server-sent events over fetch: EventSource cannot send a header, and the API wants its secret in one.
//
// `Parser` is pure: text in, events out, however the text was cut. `follow` keeps a stream alive: when it breaks
// it is opened again behind the last event that came.

/** Takes a stream of text apart into events, as the HTML standard says. */
export class Parser {
  #rest = "";
  #name = "";
  #data = [];
  #id = null;
  #begun = false;

  /** The id that a reader names to go on from here; null before the first one. */
  get lastEventId() {
    return this.#id;
  }

  /** Adds text as it came; returns the events that it completes, each `{name, data, id}`. */
  feed(text) {
    if (!this.#begun && text !== "") {
      this.#begun = true;
      if (text.startsWith("\uFEFF")) text = text.slice(1);
    }
    this.#rest += text;
    const events = [];
    for (;;) {
      const end = this.#rest.search(/[\r\n]/);
      // A carriage return at the very end may be half of a line's end.
      if (end < 0 || (this.#rest[end] === "\r" && end === this.#rest.length - 1)) return events;
      const line = this.#rest.slice(0, end);
      this.#rest = this.#rest.slice(end + (this.#rest.startsWith("\r\n", end) ? 2 : 1));
      const event = this.#line(line);
      if (event) events.push(event);
    }
  }

  #line(line) {
    if (line === "") return this.#dispatch();
    if (line.startsWith(":")) return null;
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "event") this.#name = value;
    if (field === "data") this.#data.push(value);
    if (field === "id" && !value.includes("\0")) this.#id = value;
    return null;
  }

  #dispatch() {
    const [name, data] = [this.#name || "message", this.#data];
    this.#name = "";
    this.#data = [];
    return data.length === 0 ? null : { name, data: data.join("\n"), id: this.#id };
  }
}

/** How long to wait before the n-th try in a row, milliseconds. */
export function pause(tries) {
  return Math.min(250 * 2 ** tries, 5_000);
}

/**
 * Reads a stream until `event` returns false, the signal falls, or the server refuses for good (then it throws what
 * `open` threw). `open(lastEventId)` returns a response; what it throws with `final` set is not tried again.
 * `state` hears `open` and `waiting`.
 */
export async function follow({ open, event, state = () => {}, signal, wait = sleep }) {
  let last = null;
  for (let tries = 0; !signal.aborted; tries += 1) {
    try {
      const response = await open(last);
      state("open");
      const parser = new Parser();
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        for (const one of parser.feed(value)) {
          tries = 0;
          last = one.id ?? last;
          if (event(one) === false) {
            await reader.cancel();
            return;
          }
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error.final) throw error;
    }
    state("waiting");
    await wait(pause(tries), signal);
  }
}

function sleep(ms, signal) {
  return new Promise((done) => {
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", () => { clearTimeout(timer); done(); }, { once: true });
  });
}
