//! Workers: they take jobs in no particular order, take their time, answer like a model or a tool of a certain temper,
//! store their result once or more often, and die with or without having stored it.

use schemas::chat::{FinishReason, MALFORMED_CALL, Message, ToolCall, Usage};
use schemas::code::{FILES, FilesDone, IndexReport, PLAN, Plan};
use schemas::fact::{
    Alternative, CompressionCompleted, CompressionFailed, FailureClass, InferenceCompleted, InferenceFailed,
    InferenceTiming, Sandbox, ToolCompleted, ToolFailed,
};
use schemas::job::{AnalysisJob, InferenceJob, Purpose, ToolJob};
use schemas::object::Reference;
use schemas::wire::Nanos;
use schemas::{Fact, FactBody};
use serde_json::json;

use super::bus::Job;
use super::people::{HELPER, LEAD, Temper};
use super::world::{Fate, Wakeup, World};
use super::{MILLISECOND, SECOND};
use crate::execution::DELEGATE;
use crate::work::Order;

/// How often a worker says that it is at a job.
const PROGRESS_EVERY: Nanos = 2 * SECOND;

/// One worker.
#[derive(Default)]
pub(super) struct Worker {
    pub(super) up: bool,
    pub(super) life: u64,
    pub(super) cut_until: Nanos,
    pub(super) skew: Nanos,
    work: Option<Work>,
}

struct Work {
    job: Job,
    done_at: Nanos,
    /// The result, once there is one.
    fact: Option<Box<Fact>>,
}

impl Worker {
    pub(super) fn holds(&self, life: u64, job: u64) -> bool {
        self.up && self.life == life && self.work.as_ref().is_some_and(|work| work.job.sequence == job)
    }
}

impl World {
    pub(super) fn start_worker(&mut self, who: usize) {
        let this = &mut self.workers[who];
        *this = Worker { up: true, life: this.life + 1, skew: this.skew, ..Worker::default() };
        let life = this.life;
        self.note(|| format!("worker {who} starts"));
        let first = self.chance.span(1, 300);
        self.after(first, Wakeup::Pull { who, life });
    }

    pub(super) fn kill_worker(&mut self, who: usize) {
        let this = &mut self.workers[who];
        if !std::mem::take(&mut this.up) {
            return;
        }
        this.work = None;
        self.counts.kills += 1;
        self.note(|| format!("worker {who} dies"));
        let back = self.chance.span(100, 10_000);
        self.after(back, Wakeup::Start { worker: true, who });
    }

    /// There is something to do: one idle worker looks at once.
    pub(super) fn call_a_worker(&mut self) {
        let idle: Vec<usize> =
            (0..self.workers.len()).filter(|w| self.workers[*w].up && self.workers[*w].work.is_none()).collect();
        if !idle.is_empty() {
            let who = self.chance.pick(&idle);
            let soon = self.chance.span(0, 4);
            self.after(soon, Wakeup::Pull { who, life: self.workers[who].life });
        }
    }

    pub(super) fn pull(&mut self, who: usize, life: u64) {
        let this = &self.workers[who];
        if !this.up || this.life != life {
            return;
        }
        let again = self.chance.span(500, 1_500);
        self.after(again, Wakeup::Pull { who, life });
        let this = &self.workers[who];
        if this.work.is_some() || self.now < this.cut_until.max(self.down_until) {
            return;
        }
        let waiting = self.queue.waiting(self.now);
        if waiting.is_empty() {
            return;
        }
        let sequence = self.chance.pick(&waiting);
        let Some(job) = self.queue.take(sequence, (who, life), self.now) else { return };
        self.note(|| format!("worker {who} takes {}/{}/{}", job.exec, job.effect, job.attempt));
        if self.is_faulty() && self.chance.permille(10) {
            // It was handed out, and never arrived.
            return;
        }
        let temper = self.tempers.get(&job.exec).copied().unwrap_or_default();
        let span = match &job.order {
            Order::Inference(_) if self.chance.percent(3) => self.chance.span(20_000, 180_000),
            Order::Inference(_) => self.chance.span(30, 6_000),
            _ if temper.is_slow() => self.chance.span(125_000, 180_000),
            _ if self.chance.percent(3) => self.chance.span(100_000, 200_000),
            _ => self.chance.span(2, 3_000),
        };
        let done_at = self.now + span;
        let next = if temper.kills(&job) {
            done_at.min(self.now + 300 * MILLISECOND)
        } else {
            done_at.min(self.now + PROGRESS_EVERY)
        };
        self.workers[who].work = Some(Work { job, done_at, fact: None });
        self.at(next, Wakeup::Work { who, life });
    }

    pub(super) fn work(&mut self, who: usize, life: u64) {
        let this = &mut self.workers[who];
        let Some(mut work) = this.work.take().filter(|_| this.up && this.life == life) else { return };
        let temper = self.tempers.get(&work.job.exec).copied().unwrap_or_default();
        if temper.kills(&work.job) {
            return self.kill_worker(who);
        }
        let (cut_until, skew, sequence) = (this.cut_until, this.skew, work.job.sequence);
        if self.now < work.done_at {
            if self.now >= cut_until.max(self.down_until) {
                self.queue.progress(sequence, (who, life), self.now);
            }
            let next = work.done_at.min(self.now + PROGRESS_EVERY);
            self.workers[who].work = Some(work);
            return self.at(next, Wakeup::Work { who, life });
        }
        if work.fact.is_none() {
            let key = (work.job.exec, work.job.effect.clone(), work.job.attempt);
            self.counts.jobs += 1;
            self.counts.repeated += u64::from(!self.done.insert(key));
            let body = self.carry_out(who, &work.job, temper);
            work.fact = Some(Box::new(Fact::new(work.job.exec, self.now + skew, body)));
        }
        let Some(fact) = work.fact.clone() else { return };
        let fate = self.fate(cut_until);
        if fate != Fate::Lost {
            self.append_fact(&fact);
        }
        if fate != Fate::Fine {
            self.workers[who].work = Some(work);
            return self.after(500 * MILLISECOND, Wakeup::Work { who, life });
        }
        if self.is_faulty() && self.chance.permille(30) {
            // Again soon, or when the stream has forgotten that it knows it.
            let late =
                if self.chance.percent(70) { self.chance.span(5, 9_000) } else { self.chance.span(121_000, 150_000) };
            self.after(late, Wakeup::Append(fact));
        }
        if self.is_faulty() && self.chance.permille(20) {
            // It dies between its result and its acknowledgement.
            return self.kill_worker(who);
        }
        self.queue.remove(sequence);
        self.call_a_worker();
    }

    fn carry_out(&mut self, who: usize, job: &Job, temper: Temper) -> FactBody {
        match &job.order {
            Order::Inference(asked) if asked.purpose == Purpose::Summary => self.summarise(who, asked),
            Order::Inference(asked) => self.infer(who, asked, temper),
            Order::Tool(asked) => self.run_tool(who, asked, temper),
            Order::Analysis(asked) => self.run_analysis(who, asked),
            Order::Child(_) => unreachable!("a child is no job"),
        }
    }

    fn infer(&mut self, who: usize, job: &InferenceJob, temper: Temper) -> FactBody {
        let (effect, attempt, worker) = (job.effect.clone(), job.attempt, format!("w{who}"));
        let prompt = tokens(&job.messages);
        let failed = |class, detail: &str| {
            let (effect, worker, detail) = (effect.clone(), worker.clone(), detail.to_owned());
            FactBody::InferenceFailed(InferenceFailed { effect, attempt, worker, class, detail })
        };
        if prompt > temper.window() {
            return failed(FailureClass::Overflow, "the prompt does not fit");
        }
        if self.chance.percent(6) {
            let classes = [FailureClass::Overloaded, FailureClass::Internal];
            return failed(self.chance.pick(&classes), "no room now");
        }
        if self.chance.permille(6) {
            return failed(FailureClass::BadRequest, "no such template");
        }
        let turn: u32 = effect.as_str().split('-').next().and_then(|t| t.parse().ok()).unwrap_or(0);
        let tool_calls = self.calls(turn, attempt, job, temper);
        let text = "words ".repeat(1 + self.chance.index(if temper.talks() { 80 } else { 12 }));
        let answer = (text.len() as u64 / 6 + 4).min(job.tokens_max.max(1));
        let other = Alternative {
            text: text.clone(),
            tool_calls: Vec::new(),
            finish: FinishReason::Stop,
            completion_tokens: answer,
            logprobs: Vec::new(),
        };
        let answers = job.sampling.answers();
        FactBody::InferenceCompleted(InferenceCompleted {
            effect,
            attempt,
            worker,
            text,
            finish: if tool_calls.is_empty() { FinishReason::Stop } else { FinishReason::ToolCalls },
            tool_calls,
            usage: Usage::new(prompt, answer * u64::from(answers)),
            cached_tokens: 0,
            timing: InferenceTiming::default(),
            logprobs: Vec::new(),
            alternatives: vec![other; answers as usize - 1],
            cached: false,
            dropped_messages: 0,
        })
    }

    /// What a model asks for: mostly sensible things.
    fn calls(&mut self, turn: u32, attempt: u32, job: &InferenceJob, temper: Temper) -> Vec<ToolCall> {
        if let Some(name) = temper.always_calls(turn) {
            return vec![ToolCall::new(format!("c{turn}"), name, "{}")];
        }
        let some = [0, 0, 1, 1, 1, 2, 2, 3];
        let count = match temper {
            _ if temper.talks() => 1,
            _ if temper.delegates() && turn < 4 => 2 + self.chance.index(2),
            _ => self.chance.pick(&some),
        };
        let delegates = job.tools.iter().any(|t| t.function.name == DELEGATE);
        let kinds = if delegates && temper.delegates() { 30 } else { 20 };
        let mut calls = Vec::new();
        for i in 0..count {
            let id = format!("c{turn}{attempt}{i}");
            let task = format!("part {i} of {turn}");
            let helper = if self.chance.percent(40) { LEAD } else { HELPER };
            let (name, arguments) = match self.chance.below(kinds) {
                0 => ("nonsense", "{}".to_owned()),
                1 => (MALFORMED_CALL, "{not json".to_owned()),
                2 => (DELEGATE, json!({"agent": "nobody", "task": task}).to_string()),
                3..=5 => ("guarded", json!({"x": i}).to_string()),
                6..=12 | 20.. if delegates => (DELEGATE, json!({"agent": helper, "task": task}).to_string()),
                _ => ("search_code", json!({"query": format!("{turn}{i}")}).to_string()),
            };
            calls.push(ToolCall::new(id, name, arguments));
        }
        calls
    }

    fn run_tool(&mut self, who: usize, job: &ToolJob, temper: Temper) -> FactBody {
        let (effect, attempt, worker, sandbox) =
            (job.effect.clone(), job.attempt, format!("w{who}"), Sandbox::default());
        if temper.always_calls(1).is_none() && self.chance.percent(12) {
            let classes = [
                FailureClass::Overloaded,
                FailureClass::Internal,
                FailureClass::BadRequest,
                FailureClass::Timeout,
                FailureClass::Cancelled,
            ];
            let class = self.chance.pick(&classes);
            let detail = "no such file".to_owned();
            return FactBody::ToolFailed(ToolFailed {
                effect,
                attempt,
                worker,
                class,
                detail,
                duration_us: 1,
                sandbox,
            });
        }
        let most = job.result_bytes_max.max(40) as usize;
        let length = match temper.always_calls(1) {
            Some(_) => 30,
            None if temper.talks() => most - self.chance.index(most / 4),
            None => 1 + self.chance.index(most / 2),
        };
        let result = "r".repeat(length);
        FactBody::ToolCompleted(ToolCompleted { full: None, effect, attempt, worker, result, duration_us: 1, sandbox })
    }

    fn run_analysis(&mut self, who: usize, job: &AnalysisJob) -> FactBody {
        let (effect, attempt, worker, sandbox) =
            (job.effect.clone(), job.attempt, format!("w{who}"), Sandbox::default());
        if self.chance.percent(12) {
            let classes = [FailureClass::Internal, FailureClass::BadRequest, FailureClass::Cancelled];
            let (class, detail) = (self.chance.pick(&classes), "no such directory".to_owned());
            return FactBody::ToolFailed(ToolFailed {
                effect,
                attempt,
                worker,
                class,
                detail,
                duration_us: 1,
                sandbox,
            });
        }
        let parts = self.chance.below(4) as u32;
        let plan = Plan {
            list: (parts > 0).then(|| Reference::to(b"list", "application/msgpack")),
            files: 9,
            parts: (0..parts).map(|part| (part, part + 1)).collect(),
            ..Plan::default()
        };
        let result = match job.kind.as_str() {
            _ if self.chance.percent(3) => "nonsense".to_owned(),
            PLAN => json!(plan).to_string(),
            FILES => json!(FilesDone { files: 1, ..FilesDone::default() }).to_string(),
            _ => json!(IndexReport::default()).to_string(),
        };
        FactBody::ToolCompleted(ToolCompleted { full: None, effect, attempt, worker, result, duration_us: 1, sandbox })
    }

    fn summarise(&mut self, who: usize, job: &InferenceJob) -> FactBody {
        let (effect, attempt, worker) = (job.effect.clone(), job.attempt, format!("w{who}"));
        if self.chance.percent(25) {
            let classes = [FailureClass::Overloaded, FailureClass::Internal, FailureClass::Overflow];
            let (class, detail) = (self.chance.pick(&classes), "no summary".to_owned());
            return FactBody::CompressionFailed(CompressionFailed { effect, attempt, worker, class, detail });
        }
        let lengths = [0, 8, 20, 20, 40, 900];
        let summary = "s".repeat(self.chance.pick(&lengths));
        let usage = Usage::new(tokens(&job.messages), summary.len() as u64 / 3 + 1);
        FactBody::CompressionCompleted(CompressionCompleted { effect, attempt, worker, summary, usage })
    }
}

/// What a tokenizer would say, roughly.
fn tokens(messages: &[Message]) -> u64 {
    let of = |m: &Message| {
        let calls: usize = m.tool_calls.iter().map(|c| c.function.name.len() + c.function.arguments.len() + 12).sum();
        (m.content.len() + calls) as u64 * 2 / 5 + 4
    };
    messages.iter().map(of).sum::<u64>() + 3
}
