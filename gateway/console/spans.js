// What the log of one execution says, folded into what a person wants to see: where it stands, and a span for each
// effect with its attempts. Pure: messages of `/events` in, in their order; no DOM, no clock.
//
// A result counts only while its effect is open and its attempt is the current one, as everywhere in this system.
// Times are milliseconds since the epoch, by the server's clock.

const KINDS = { infer: "inference", tool: "tool", child: "child", compress: "compression" };

const ENDS = {
  "execution.completed": "completed",
  "execution.rejected": "rejected",
  "execution.failed": "failed",
  "execution.cancelled": "cancelled",
  "execution.timed_out": "timed_out",
  "execution.budget_exhausted": "budget_exhausted",
};

/** The kind of an effect, which its id says. */
export function kindOf(effect) {
  return KINDS[effect.split("-")[1]] ?? "effect";
}

/** Events that go with others. */
const BOOKKEEPING = new Set(["timer.set", "timer.cancelled", "context.measured", "budget.reserved", "budget.settled"]);

/** What of a message matters most to a reader: of a decision, the last event that is no bookkeeping. */
export function headline(entry) {
  const names = (entry.events ?? []).map((event) => event.type);
  return names.findLast((name) => !BOOKKEEPING.has(name)) ?? entry.type;
}

export class Story {
  entries = [];
  /** The request; null until it was read. */
  request = null;
  status = "submitted";
  model = "";
  createdAt = null;
  endedAt = null;
  /** Why it ended without an answer: `{code, detail}`. */
  failure = null;
  usage = { prompt_tokens: 0, completion_tokens: 0, tokens: 0 };
  cachedTokens = 0;
  iterations = 0;
  /** One for each effect, in the order in which they were asked for. */
  spans = [];
  /** What people and limits did to it: `{n, at, label, detail, tone}`. */
  marks = [];
  pauses = [];
  /** Newest answer of the model. */
  answer = null;
  #byEffect = new Map();
  #next = 0;

  /** Folds one message; one that came before is ignored. */
  add(entry) {
    if (entry.n < this.#next) return false;
    this.#next = entry.n + 1;
    this.entries.push(entry);
    const at = (entry.stored_at_ns ?? entry.at_ns) / 1e6;
    if (entry.kind === "fact") this.#fact(entry.type, entry.data, entry, at);
    if (entry.kind === "decision") for (const event of entry.events) this.#event(event.type, event.data, entry, at);
    return true;
  }

  span(effect) {
    return this.#byEffect.get(effect) ?? null;
  }

  get ended() {
    return this.endedAt !== null;
  }

  /** Calls that wait for a person. */
  get approvals() {
    return this.spans.filter((span) => span.approval && span.approval.to === null && !this.ended);
  }

  /** What the status line says: an execution that waits for a person says so. */
  get shownStatus() {
    return !this.ended && this.status === "running" && this.approvals.length > 0 ? "waiting" : this.status;
  }

  get toolCalls() {
    return this.spans.filter((span) => span.kind === "tool").length;
  }

  /** The last moment that anything is known of. */
  get lastAt() {
    const last = this.entries.at(-1);
    return last ? (last.stored_at_ns ?? last.at_ns) / 1e6 : null;
  }

  #fact(type, data, entry, at) {
    switch (type) {
      case "execution.submitted":
        if (this.request) return;
        this.request = data;
        this.createdAt = at;
        this.model = data.model ?? "";
        return;
      case "inference.completed":
        if (!this.#close(data, "done", entry, at)) return;
        this.answer = data;
        this.iterations += 1;
        this.#use(data.usage);
        this.cachedTokens += data.cached_tokens ?? 0;
        return;
      case "compression.completed":
        if (this.#close(data, "done", entry, at)) this.#use(data.usage);
        return;
      case "child.closed":
        if (this.#close(data, data.outcome === "completed" ? "done" : "failed", entry, at)) this.#use(data.usage);
        return;
      case "tool.completed":
        this.#close(data, "done", entry, at);
        return;
      case "inference.failed":
      case "tool.failed":
      case "compression.failed":
        this.#close(data, "failed", entry, at);
        return;
      case "effect.lost":
        if (this.#close(data, "lost", entry, at)) {
          const who = data.worker ? `worker ${data.worker}` : "the worker";
          this.#mark(entry, at, "worker lost", `${who} went away with ${data.effect}`, "bad");
        }
        return;
      case "user.message":
        this.#mark(entry, at, "said", data.text || "a long text, kept as an object", "person", data.by);
        return;
      case "approval.decided": {
        const approval = this.span(data.approval)?.approval;
        if (approval) Object.assign(approval, { by: data.by, reason: data.reason ?? null });
        if (approval && data.verdict === "edit") approval.edited = data.arguments ?? null;
        return;
      }
      case "budget.granted":
        this.#mark(
          entry, at, "granted",
          `${data.amount} more ${data.dimension.replaceAll("_", " ")}`, "person", data.by,
        );
        return;
      case "cancel.requested":
        this.#mark(
          entry, at, data.mode === "graceful" ? "cancel, gracefully" : "cancel", data.reason ?? "", "bad",
          data.by,
        );
        return;
    }
  }

  #event(type, data, entry, at) {
    if (ENDS[type]) {
      this.status = ENDS[type];
      this.endedAt = at;
      Object.assign(this, { iterations: data.iterations, usage: data.usage });
      if (data.code) this.failure = { code: data.code, detail: data.detail };
      for (const span of this.spans) this.#shut(span, "cancelled", at);
      this.#resume(at);
      return;
    }
    switch (type) {
      case "execution.started":
        this.status = "running";
        this.model = data.model || this.model;
        return;
      case "inference.requested":
        this.#open(data, "inference", this.model || "model", entry, at, { turn: data.turn, context: data.context });
        return;
      case "compression.requested":
        this.#open(data, "compression", "summary", entry, at, { range: [data.from, data.to] });
        return;
      case "tools.requested":
        for (const call of data.calls) this.#call(call, data.turn, entry, at);
        return;
      case "child.requested": {
        const asked = this.answer?.tool_calls?.[data.ordinal];
        const more = { turn: data.turn, child: data.child, ordinal: data.ordinal, arguments: argumentsOf(asked) };
        this.#open(data, "child", data.agent, entry, at, more);
        return;
      }
      case "approval.requested": {
        const span = this.span(data.approval);
        if (span) span.approval = {
          from: at, to: null, expires: data.expires / 1e6, verdict: null, by: null, reason: null,
        };
        return;
      }
      case "approval.resolved":
        this.#resolved(data, entry, at);
        return;
      case "retry.scheduled": {
        const span = this.span(data.effect);
        if (!span) return;
        this.#shut(span, data.reason === "lost" ? "lost" : "failed", at);
        span.attempts.push(attempt(data.attempt, Math.max(at, data.at / 1e6), data.reason));
        span.state = "open";
        return;
      }
      case "effect.cancelled": {
        const span = this.span(data.effect);
        if (span) this.#shut(span, "cancelled", at);
        return;
      }
      case "tools.joined":
        for (const outcome of data.outcomes) {
          const span = this.span(outcome.effect);
          if (span && span.state === "open") this.#shut(span, outcome.success ? "done" : "failed", at);
        }
        return;
      case "execution.paused":
        this.status = "paused";
        this.pauses.push({ from: at, to: null, by: data.by, reason: data.reason ?? null });
        this.#mark(entry, at, "paused", data.reason ?? "", "warn", data.by);
        return;
      case "execution.resumed":
        this.status = "running";
        this.#resume(at);
        this.#mark(entry, at, "resumed", "", "person", data.by);
        return;
      case "context.replaced":
        this.#mark(
          entry, at, "context replaced",
          `messages ${data.from} to ${data.to}, about ${data.tokens} tokens remain`, "quiet",
        );
        return;
      case "stuck.detected":
        this.#mark(entry, at, "stuck", `turns ${data.turns.join(", ")} repeat (${data.pattern})`, "bad");
        return;
      case "budget.exceeded":
        this.#mark(
          entry, at, "limit reached",
          `${data.used} of ${data.limit} ${data.dimension.replaceAll("_", " ")}`, "warn",
        );
        return;
    }
  }

  #open(data, kind, name, entry, at, more = {}) {
    const there = this.span(data.effect);
    if (there) {
      there.attempts.push(attempt(data.attempt, at));
      there.state = "open";
      return there;
    }
    const span = {
      effect: data.effect, kind, name, n: entry.n, turn: null, from: at, to: null, state: "open",
      attempts: [attempt(data.attempt, at)], approval: null, arguments: null, result: null, full: null, refused: null,
      usage: null, ...more,
    };
    this.spans.push(span);
    this.#byEffect.set(span.effect, span);
    return span;
  }

  #call(call, turn, entry, at) {
    const asked = this.answer?.tool_calls?.[call.ordinal] ?? (this.request?.call || null);
    const more = { turn, ordinal: call.ordinal, arguments: argumentsOf(asked) };
    const span = this.#open(call, "tool", call.name, entry, at, more);
    if (!call.refused) return;
    Object.assign(span, { refused: call.refused, result: call.refused, state: "refused", to: at, attempts: [] });
  }

  #resolved(data, entry, at) {
    const span = this.span(data.approval);
    if (!span?.approval) return;
    const { approval } = span;
    Object.assign(approval, { to: at, verdict: data.verdict, via: data.via });
    this.#mark(
      entry, at, verdicts[data.verdict], span.name, data.verdict === "deny" ? "bad" : "person", approval.by ?? data.via,
    );
    if (data.verdict === "deny") {
      this.#shut(span, "denied", at);
      span.result = approval.reason ?? "not allowed";
      return;
    }
    if (approval.edited) span.arguments = parsed(approval.edited);
    const last = span.attempts.at(-1);
    if (last) last.from = at;
  }

  /** Closes the attempt that a fact is about; false when it is not the current one. */
  #close(data, outcome, entry, at) {
    const span = this.span(data.effect);
    const last = span?.attempts.at(-1);
    if (!last || span.state !== "open" || last.attempt !== data.attempt || last.to !== null) return false;
    this.#shut(span, outcome, at);
    last.n = entry.n;
    last.worker = data.worker ?? null;
    last.detail = data.detail ?? null;
    last.failure = data.class ?? null;
    last.sandbox = data.sandbox?.tier || null;
    last.parts = parts(data, last);
    span.usage = data.usage ?? span.usage;
    span.cached = data.cached ?? false;
    if (outcome === "done" || span.kind === "child") {
      span.result = data.text ?? data.result ?? data.summary ?? null;
      span.full = data.full ?? null;
      span.calls = data.tool_calls ?? [];
      span.finish = data.finish ?? null;
      span.cachedTokens = data.cached_tokens ?? 0;
    } else {
      span.result = data.detail ?? null;
    }
    return true;
  }

  #shut(span, outcome, at) {
    if (span.state !== "open") return;
    span.state = outcome;
    span.to = at;
    const last = span.attempts.at(-1);
    if (last && last.to === null) Object.assign(last, { to: Math.max(at, last.from), outcome });
    if (span.approval && span.approval.to === null) span.approval.to = at;
  }

  #resume(at) {
    const last = this.pauses.at(-1);
    if (last && last.to === null) last.to = at;
  }

  #use(usage) {
    for (const key of Object.keys(this.usage)) this.usage[key] += usage?.[key] ?? 0;
  }

  #mark(entry, at, label, detail, tone, by = null) {
    this.marks.push({ n: entry.n, at, label, detail, tone, by: by ?? null });
  }
}

const verdicts = { allow: "allowed", edit: "allowed, edited", deny: "denied" };

function attempt(number, from, reason = null) {
  return { attempt: number, from, to: null, outcome: "open", reason, worker: null, parts: null, detail: null, n: null };
}

/** Where an attempt's time went, milliseconds: in the queue, reading the prompt, writing; or the call itself. */
function parts(data, attempt) {
  const total = attempt.to - attempt.from;
  if (data.timing) {
    const [queue, prefill, decode] = ["queue_us", "prefill_us", "decode_us"].map(
      (key) => (data.timing[key] ?? 0) / 1e3
    );
    return queue + prefill + decode > 0 ? { queue, prefill, decode } : null;
  }
  if (data.duration_us > 0) {
    const run = Math.min(data.duration_us / 1e3, total);
    return { queue: Math.max(total - run, 0), run };
  }
  return null;
}

function argumentsOf(call) {
  return call?.function ? parsed(call.function.arguments) : null;
}

function parsed(text) {
  if (typeof text !== "string") return text;
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/**
 * What a span's bar is made of: pieces of time, each `{from, to, what, attempt}`. What goes on reaches to `now`.
 * `what` is `approval`, `backoff`, `queue`, `prefill`, `decode`, `run`, `open`, `failed`, `lost` or `cancelled`.
 */
export function segments(span, now) {
  const pieces = [];
  const add = (what, from, to, number = null) => to > from && pieces.push({ from, to, what, attempt: number });
  const { approval } = span;
  if (approval) add("approval", approval.from, approval.to ?? now);
  let before = null;
  for (const one of span.attempts) {
    if (approval && (approval.to === null || approval.verdict === "deny")) break;
    if (before !== null) add("backoff", before, Math.min(one.from, now), one.attempt);
    const end = one.to ?? now;
    before = end;
    if (one.outcome !== "done" && one.outcome !== "open") add(one.outcome, one.from, end, one.attempt);
    else if (!one.parts) add(one.outcome === "open" ? "open" : "run", one.from, end, one.attempt);
    else {
      // The result is the end that is known; what no worker accounts for was waiting.
      let at = end;
      for (const what of ["decode", "run", "prefill"]) {
        const length = Math.min(one.parts[what] ?? 0, at - one.from);
        add(what, at - length, at, one.attempt);
        at -= length;
      }
      add("queue", one.from, at, one.attempt);
    }
  }
  return pieces.sort((a, b) => a.from - b.from);
}

/** The story of a whole log. */
export function fold(entries) {
  const story = new Story();
  for (const entry of entries) story.add(entry);
  return story;
}

/** Steps of an axis from half a minute on, milliseconds: those that people count in. */
const LONG_STEPS = [0.5, 1, 2, 5, 10, 30, 60, 120, 240, 720, 1_440].map((minutes) => minutes * 60e3);

/** Moments for an axis: a few round steps over `span` milliseconds. */
export function ticks(span, wanted = 6) {
  if (!(span > 0)) return [0];
  const rough = span / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const short = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const step = short <= 20e3 ? short : LONG_STEPS.find((s) => s >= rough) ?? Math.ceil(rough / 86_400e3) * 86_400e3;
  return Array.from({ length: Math.floor(span / step + 1e-9) + 1 }, (_, i) => i * step);
}
