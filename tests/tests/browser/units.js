// The body of an asynchronous script in a page of the console: imports its modules as they are served, tries them, and
// calls back with how many cases held and what did not.

const finished = arguments[arguments.length - 1];
const failed = [];
let held = 0;

function equal(found, wanted, what) {
  const [a, b] = [JSON.stringify(found), JSON.stringify(wanted)];
  if (a === b) held += 1;
  else failed.push(`${what}: ${a} is not ${b}`);
}

const of = (name) => import(`/console/${name}.js`);

async function sse() {
  const { Parser, follow, pause } = await of("sse");
  const text = "\uFEFF: a comment\r\nevent: token\r\nid: 1-infer-0.1\r\ndata: {\"text\":\"Hé\"}\r\n\r\n"
    + "data: two\ndata:  lines\n\nevent: empty\n\nid: bad\0id\ndata\n\nid\rdata: last\r\rdata: never ended";
  const wanted = [
    { name: "token", data: "{\"text\":\"Hé\"}", id: "1-infer-0.1" },
    { name: "message", data: "two\n lines", id: "1-infer-0.1" },
    { name: "message", data: "", id: "1-infer-0.1" },
    { name: "message", data: "last", id: "" },
  ];
  equal(new Parser().feed(text), wanted, "a stream in one piece");
  for (let cut = 1; cut < text.length; cut += 1) {
    const parser = new Parser();
    const events = [...parser.feed(text.slice(0, cut)), ...parser.feed(text.slice(cut))];
    if (JSON.stringify(events) !== JSON.stringify(wanted)) failed.push(`cut at ${cut}: ${JSON.stringify(events)}`);
  }
  const bitwise = new Parser();
  equal([...text].flatMap((letter) => bitwise.feed(letter)), wanted, "a stream letter by letter");
  equal([0, 1, 2, 3, 4, 5, 20].map(pause), [250, 500, 1_000, 2_000, 4_000, 5_000, 5_000], "pauses grow and are bounded");

  // A stream that breaks goes on behind its last event.
  const parts = ["id: 1\ndata: a\n\nid: 2\ndata: b\n\nid: 3\ndata: half", "id: 3\ndata: c\n\n", null, "id: 4\ndata: d\n\n"];
  const [asked, heard, states] = [[], [], []];
  const open = async (last) => {
    asked.push(last);
    const part = parts.shift();
    if (part === null) throw new Error("away");
    return new Response(part);
  };
  const { signal } = new AbortController();
  await follow({ open, signal, wait: async () => {}, state: (now) => states.push(now), event: ({ data }) => { heard.push(data); return data !== "d"; } });
  equal(heard, ["a", "b", "c", "d"], "nothing is heard twice and nothing is missed");
  equal(asked, [null, "2", "3", "3"], "each try names the last event that came");
  equal(states, ["open", "waiting", "open", "waiting", "waiting", "open"], "it says when it waits");
  const refused = Object.assign(new Error("403"), { final: true });
  equal(await follow({ open: async () => { throw refused; }, signal, event: () => {} }).catch((e) => e.message), "403", "what is refused for good is thrown");
  const left = new AbortController();
  await follow({ open: async () => { left.abort(); throw new Error("gone"); }, signal: left.signal, event: () => {} });
  held += 1;
}

async function spans() {
  const { fold, kindOf, segments, ticks } = await of("spans");
  let n = 0;
  const at = (ms) => ({ n: n++, stored_at_ns: ms * 1e6 });
  const fact = (ms, type, data) => ({ ...at(ms), kind: "fact", type, data });
  const decision = (ms, ...events) => ({ ...at(ms), kind: "decision", type: events.at(-1)[0], events: events.map(([type, data]) => ({ type, data })) });
  const call = (name, text) => ({ id: name, function: { name, arguments: text } });
  const log = [
    fact(1_000, "execution.submitted", { kind: "agent", agent: "coder", model: "tiny", messages: [{ role: "user", content: "go" }] }),
    decision(1_010, ["execution.started", { model: "tiny" }], ["inference.requested", { effect: "1-infer-0", attempt: 1, turn: 1, context: 2 }]),
    fact(1_100, "effect.lost", { effect: "1-infer-0", attempt: 1, worker: "w1" }),
    decision(1_110, ["retry.scheduled", { effect: "1-infer-0", attempt: 2, at: 1_200e6, reason: "lost" }]),
    // A result of the attempt that was given up counts for nothing.
    fact(1_150, "inference.completed", { effect: "1-infer-0", attempt: 1, worker: "w1", text: "too late", usage: { prompt_tokens: 9, completion_tokens: 9, tokens: 18 } }),
    fact(1_300, "inference.completed", { effect: "1-infer-0", attempt: 2, worker: "w2", text: "", finish: "tool_calls", timing: { queue_us: 10_000, prefill_us: 30_000, decode_us: 50_000 },
      usage: { prompt_tokens: 10, completion_tokens: 5, tokens: 15 }, tool_calls: [call("read_file", "{\"path\":\"a\"}"), call("read_file", "not json"), call("nothing", "{}")] }),
    decision(1_310, ["tools.requested", { turn: 1, calls: [
      { effect: "1-tool-0", attempt: 1, ordinal: 0, name: "read_file" }, { effect: "1-tool-1", attempt: 1, ordinal: 1, name: "read_file" },
      { effect: "1-tool-2", attempt: 1, ordinal: 2, name: "nothing", refused: "no such tool" }] }],
      ["approval.requested", { approval: "1-tool-0", name: "read_file", expires: 9_000e6 }]),
    fact(1_350, "tool.failed", { effect: "1-tool-1", attempt: 1, worker: "t", class: "bad_request", detail: "no JSON", duration_us: 5_000 }),
  ];
  const half = fold(log);
  equal([half.status, half.shownStatus, half.ended], ["running", "waiting", false], "an execution that waits for a person says so");
  equal(half.approvals.map((span) => span.effect), ["1-tool-0"], "and for which call");
  log.push(
    fact(2_310, "approval.decided", { approval: "1-tool-0", by: "ann", verdict: "edit", arguments: "{\"path\":\"b\"}", reason: "better" }),
    decision(2_310, ["approval.resolved", { approval: "1-tool-0", verdict: "edit", via: "person" }]),
    fact(2_330, "tool.completed", { effect: "1-tool-0", attempt: 1, worker: "t", result: "text", duration_us: 15_000, sandbox: { tier: "bubblewrap" } }),
    decision(2_340, ["tools.joined", { turn: 1, outcomes: [] }], ["inference.requested", { effect: "2-infer-0", attempt: 1, turn: 2, context: 6 }]),
    fact(2_350, "user.message", { id: "m", by: "bob", text: "hurry" }),
    decision(2_360, ["execution.paused", { by: "bob" }]), decision(2_380, ["execution.resumed", { by: "bob" }]),
    decision(2_400, ["execution.cancelled", { code: "cancelled", detail: "enough", iterations: 1, usage: { prompt_tokens: 10, completion_tokens: 5, tokens: 15 } }]),
  );
  const story = fold(log);
  equal(story.add(log[3]), false, "a message that came before is ignored");
  equal([story.status, story.endedAt, story.failure], ["cancelled", 2_400, { code: "cancelled", detail: "enough" }], "it ended");
  equal([story.usage.tokens, story.iterations], [15, 1], "what does not count is not counted");
  equal(story.spans.map((s) => [s.effect, s.kind, s.state]), [
    ["1-infer-0", "inference", "done"], ["1-tool-0", "tool", "done"], ["1-tool-1", "tool", "failed"], ["1-tool-2", "tool", "refused"], ["2-infer-0", "inference", "cancelled"],
  ], "a span for each effect");
  const [infer, tool, broken] = story.spans;
  equal(infer.attempts.map((a) => [a.attempt, a.from, a.to, a.outcome, a.worker]), [[1, 1_010, 1_100, "lost", "w1"], [2, 1_200, 1_300, "done", "w2"]], "its attempts");
  equal(segments(infer, 3_000).map((p) => [p.what, p.from, p.to]), [
    ["lost", 1_010, 1_100], ["backoff", 1_100, 1_200], ["queue", 1_200, 1_220], ["prefill", 1_220, 1_250], ["decode", 1_250, 1_300],
  ], "its time, without holes");
  equal(segments(tool, 3_000).map((p) => [p.what, p.from, p.to]), [["approval", 1_310, 2_310], ["queue", 2_310, 2_315], ["run", 2_315, 2_330]], "waiting for a person is no running");
  equal([tool.arguments, tool.result, tool.approval.by, tool.approval.reason], [{ path: "b" }, "text", "ann", "better"], "edited arguments count");
  equal([broken.arguments, broken.result], ["not json", "no JSON"], "what is no JSON stays text");
  equal(segments(half.span("1-tool-0"), 1_510).map((p) => [p.what, p.to]), [["approval", 1_510]], "what goes on reaches to now");
  equal(story.marks.map((m) => [m.label, m.by]), [["worker lost", null], ["allowed, edited", "ann"], ["said", "bob"], ["paused", "bob"], ["resumed", "bob"]], "what people did");
  equal(story.pauses.map((p) => [p.from, p.to]), [[2_360, 2_380]], "a pause has its end");
  equal(["1-infer-0", "2-tool-3", "1-child-0", "1-compress-0"].map(kindOf), ["inference", "tool", "child", "compression"], "an effect's id says its kind");
  const child = fold([
    { n: 0, stored_at_ns: 0, kind: "fact", type: "execution.submitted", data: { kind: "agent", agent: "planner" } },
    { n: 1, stored_at_ns: 1e6, kind: "decision", type: "child.requested", events: [{ type: "child.requested", data: { effect: "1-child-0", attempt: 1, turn: 1, ordinal: 0, child: "c", agent: "coder" } }] },
    { n: 2, stored_at_ns: 5e6, kind: "fact", type: "child.closed", data: { effect: "1-child-0", attempt: 1, child: "c", outcome: "failed", text: "no", usage: { prompt_tokens: 1, completion_tokens: 1, tokens: 2 } } },
  ]);
  equal([child.spans[0].state, child.spans[0].child, child.spans[0].result, child.usage.tokens], ["failed", "c", "no", 2], "a child's end is its parent's");
  for (const span of [0.7, 3, 48, 61, 1_000, 9_999, 123_456, 7e6, 9e9]) {
    const steps = ticks(span);
    if (steps.length < 2 || steps.length > 9 || steps[0] !== 0 || steps.at(-1) > span * 1.000001) failed.push(`ticks of ${span}: ${steps}`);
  }
  equal(ticks(100), [0, 20, 40, 60, 80, 100], "an axis has round steps");
  equal(ticks(250e3), [0, 60e3, 120e3, 180e3, 240e3], "and of minutes where it is long");
}

async function words() {
  const { ago, bytes, duration, line, short } = await of("format");
  equal([0, 0.42, 4.24, 12.3, 999.4, 1_240, 12_340, 59_994, 59_996, 65_000, 7_500_000, 273_600_000, null].map(duration),
    ["0 ms", "0.42 ms", "4.2 ms", "12 ms", "999 ms", "1.24 s", "12.3 s", "60.0 s", "1 m", "1 m 05 s", "2 h 05 m", "3 d 4 h", "–"], "durations");
  equal([0, 999, 1_000, 3_482, 1_048_576, 5e12].map(bytes), ["0 B", "999 B", "1.0 KiB", "3.4 KiB", "1.0 MiB", "4.5 TiB"], "bytes");
  equal([0, 30, 90, 7_300, 172_900].map((s) => ago(0, s * 1e3)), ["just now", "30 s ago", "1 min ago", "2 h ago", "2 d ago"], "how long ago");
  equal([line("a\n  b"), line("x".repeat(9), 5), short("0192f0c1-7a3b-7c4d-8e5f-001122334455")], ["a b", "xxxx…", "22334455"], "lines and ids");
  const { fits } = await of("executions");
  const row = { status: "running", kind: "chat", agent_type: "chat", user_id: "ann", title: "Hello there", model: "tiny", execution_id: "e" };
  const filter = { status: "", kind: "", agent_type: "", user_id: "", q: "" };
  equal([{}, { status: "submitted,running" }, { status: "failed" }, { q: "HELLO" }, { q: "bye" }, { user_id: "bob" }, { kind: "chat", agent_type: "chat" }].map((f) => fits(row, { ...filter, ...f })),
    [true, true, false, true, false, false, true], "which rows a filter lets through");
}

async function elements() {
  const { h, keyed } = await of("dom");
  const { tree } = await of("json");
  const list = h("ul");
  const make = (item) => h("li", {}, item.text);
  const draw = (...items) => keyed(list, items, (i) => i.key, (i) => i.text, make);
  draw({ key: 1, text: "a" }, { key: 2, text: "b" }, { key: 3, text: "c" });
  const [first, second] = list.children;
  draw({ key: 2, text: "b" }, { key: 1, text: "changed" }, { key: 4, text: "d" });
  equal([...list.children].map((li) => li.textContent), ["b", "changed", "d"], "a list becomes what it should be");
  equal([list.children[0] === second, list.children[1] === first], [true, false], "what did not change stays the same element");
  equal(h("p", {}, "<img src=x onerror=alert(1)>").children.length, 0, "text is never markup");
  const shown = tree({ a: [1, { b: "<b>" }], c: null }, 5);
  equal([shown.querySelectorAll("b").length, shown.textContent.includes("\"<b>\"")], [0, true], "JSON is shown, not run");
}

(async () => {
  for (const part of [sse, spans, words, elements]) {
    try {
      await part();
    } catch (error) {
      failed.push(`${part.name}: ${error.stack}`);
    }
  }
  finished({ held, failed });
})();
