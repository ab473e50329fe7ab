//! What the messages of one execution mean to a client: a pure fold of facts and decisions. No IO, no clock.
//!
//! A result counts only while its effect is open and its attempt is the current one, exactly as the orchestrator
//! counts it, so that the edge never shows what was not accepted.

mod waiting;

pub(crate) use waiting::{Approval, Waiting};

use std::collections::BTreeMap;

use schemas::api::{
    Answer, AnswerUsage, Choice, ExecutionView, IndexAnswer, Logprobs, Problem, Status, ToolAnswer, ToolCallReport,
};
use schemas::chat::{Message, Role, TokenLogprob};
use schemas::code::{FINISH, IndexReport, PLAN};
use schemas::decision::{ApprovalResolved, ChildRequested, Ended, Event};
use schemas::fact::{
    ExecutionRequested, ExecutionSubmitted, FactBody, InferenceCompleted, Kind, Outcome, Sandbox, Verdict,
};
use schemas::wire::Nanos;
use schemas::{EffectId, ExecutionId, Fact, FinishReason, Record, ToolCall, Usage};
use serde_json::{Value, json};

use crate::problem::Failure;
use waiting::Resolved;

/// A message of the log, read.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    /// A fact.
    Fact(Box<Fact>),
    /// A decision.
    Decision(Box<Record>),
    /// Bytes that are neither, and why.
    Corrupt(String),
}

impl Entry {
    /// Reads a message; never fails, so that one bad message hides no other.
    pub(crate) fn read(decision: bool, payload: &[u8]) -> Self {
        let read = if decision {
            Record::read(payload).map(|r| Self::Decision(Box::new(r)))
        } else {
            Fact::read(payload).map(|f| Self::Fact(Box::new(f)))
        };
        read.unwrap_or_else(|e| Self::Corrupt(e.to_string()))
    }

    /// The message as people read it. A decision is named after the last thing it decided.
    pub(crate) fn json(&self, n: usize, sequence: u64, stored_at: Nanos) -> Value {
        let mut shown = self.content(n, sequence);
        shown["stored_at"] = json!(rfc3339(stored_at));
        shown["stored_at_ns"] = json!(stored_at);
        shown
    }

    fn content(&self, n: usize, sequence: u64) -> Value {
        match self {
            Self::Fact(f) => json!({
                "n": n, "sequence": sequence, "kind": "fact", "type": f.body.name(), "at": rfc3339(f.at), "at_ns": f.at,
                "cause": f.cause, "data": serde_json::to_value(&f.body).map_or(Value::Null, |mut v| v["data"].take()),
            }),
            Self::Decision(r) => json!({
                "n": n, "sequence": sequence, "kind": "decision",
                "type": r.events.last().map_or("decision", Event::name), "at": rfc3339(r.at), "at_ns": r.at,
                "decision": r.n, "commit": r.commit(), "machine": r.machine, "facts_upto": r.facts_upto,
                "events": r.events, "prev_hash": r.prev_hash, "hash": r.hash,
            }),
            Self::Corrupt(why) => {
                json!({"n": n, "sequence": sequence, "kind": "corrupt", "type": "corrupt", "detail": why})
            }
        }
    }

    pub(crate) fn is_end(&self) -> bool {
        matches!(self, Self::Decision(r) if r.events.iter().any(Event::is_terminal))
    }
}

/// Something a client hears of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Happening {
    /// The log holds an inference's whole text.
    Text { effect: EffectId, text: String, tokens: u64, logprobs: Vec<TokenLogprob> },
    /// A tool is asked.
    ToolCall(ToolCallReport),
    /// A call waits for a person.
    Approval(Approval),
    /// A tool call has its outcome.
    ToolResult(ToolCallReport),
    /// Nothing follows.
    Ended,
}

/// One tool call: what was asked, and what came of it.
#[derive(Clone, Debug)]
struct Call {
    report: ToolCallReport,
    duration_us: u64,
    sandbox: Sandbox,
}

/// One execution as far as its messages were folded.
#[derive(Clone, Debug, Default)]
pub(crate) struct Execution {
    submitted: Option<Box<ExecutionSubmitted>>,
    /// What a plain client asked for, and why that comes to nothing.
    requested: Option<Box<ExecutionRequested>>,
    refused: Option<Box<Problem>>,
    created_at: Nanos,
    status: Option<Status>,
    open: BTreeMap<EffectId, u32>,
    last: Option<InferenceCompleted>,
    calls: Vec<(EffectId, Call)>,
    iterations: u32,
    usage: Usage,
    /// Prompt tokens that did not have to be computed.
    cached_tokens: u64,
    finish: Option<FinishReason>,
    ended: Option<(Nanos, Option<Ended>)>,
    decisions: u64,
    waiting: Waiting,
    /// The newest inference that was asked for, until its answer is there.
    asked: Option<EffectId>,
}

impl Execution {
    /// Folds one message and says what a client hears of it.
    pub(crate) fn apply(&mut self, entry: &Entry) -> Vec<Happening> {
        if self.is_ended() {
            return Vec::new();
        }
        match entry {
            Entry::Fact(fact) => self.fact(fact),
            Entry::Decision(record) => {
                self.decisions = record.n + 1;
                record.events.iter().flat_map(|event| self.event(event, record.at)).collect()
            }
            Entry::Corrupt(_) => Vec::new(),
        }
    }

    /// Whether a message can be folded next, or something before it was missed.
    pub(crate) fn follows(&self, entry: &Entry, fact_sequence: u64) -> bool {
        match entry {
            Entry::Fact(f) => match &f.body {
                FactBody::InferenceCompleted(f) => self.is_current(&f.effect, f.attempt),
                FactBody::ToolCompleted(f) => self.is_current(&f.effect, f.attempt),
                FactBody::ExecutionSubmitted(_) => true,
                _ => false,
            },
            Entry::Decision(r) => r.n == self.decisions && r.facts_upto == fact_sequence,
            Entry::Corrupt(_) => false,
        }
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// How it ended, in one word; none while it goes on.
    pub(crate) fn ended_as(&self) -> Option<String> {
        let status = self.status.filter(|_| self.is_ended())?;
        serde_json::to_value(status).ok()?.as_str().map(str::to_owned)
    }

    /// What it waits for.
    pub(crate) const fn waiting(&self) -> &Waiting {
        &self.waiting
    }

    /// Inferences that are under way.
    pub(crate) fn open(&self) -> impl Iterator<Item = &EffectId> {
        self.open.keys()
    }

    /// The newest inference.
    pub(crate) const fn asked(&self) -> Option<&EffectId> {
        self.asked.as_ref()
    }

    /// The model that an execution asked in vain until its deadline.
    pub(crate) fn asked_in_vain(&self) -> Option<&str> {
        let timed_out = self.status == Some(Status::TimedOut) && self.asked.is_some();
        self.submitted.as_ref().filter(|_| timed_out).map(|submitted| submitted.model.as_str())
    }

    pub(crate) fn deadline(&self) -> Option<Nanos> {
        self.submitted.as_ref().map(|s| s.limits.deadline)
    }

    /// The answer as its kind of request has it.
    pub(crate) fn any_answer(&self, exec: ExecutionId) -> Result<Value, Failure> {
        match self.submitted.as_ref().map(|s| s.kind) {
            Some(Kind::Tool) => self.tool_answer(exec).map(|answer| json!(answer)),
            Some(Kind::Index) => self.index_answer(exec).map(|answer| json!(answer)),
            _ => self.answer(exec).map(|answer| json!(answer)),
        }
    }

    /// Whether it is a single call of a tool.
    pub(crate) fn is_tool(&self) -> bool {
        self.submitted.as_ref().is_some_and(|s| s.kind == Kind::Tool)
    }

    fn is_current(&self, effect: &EffectId, attempt: u32) -> bool {
        self.open.get(effect) == Some(&attempt)
    }

    fn fact(&mut self, fact: &Fact) -> Vec<Happening> {
        self.waiting.fact(&fact.body, fact.at);
        match &fact.body {
            FactBody::ExecutionSubmitted(submitted) if self.submitted.is_none() => {
                self.waiting.submitted(submitted);
                self.submitted = Some(submitted.clone());
                self.created_at = fact.at;
                Vec::new()
            }
            FactBody::ExecutionRequested(requested) if self.requested.is_none() && self.submitted.is_none() => {
                self.requested = Some(requested.clone());
                self.created_at = fact.at;
                Vec::new()
            }
            FactBody::ExecutionRefused(problem) if self.requested.is_some() && self.submitted.is_none() => {
                self.refused = Some(problem.clone());
                Vec::new()
            }
            FactBody::InferenceCompleted(f) if self.is_current(&f.effect, f.attempt) => {
                self.open.remove(&f.effect);
                self.asked = None;
                self.iterations += 1;
                self.usage = self.usage.plus(f.usage);
                self.cached_tokens += f.cached_tokens;
                self.last = Some(f.clone());
                let tokens = f.answer_tokens();
                let (effect, text, logprobs) = (f.effect.clone(), f.text.clone(), f.logprobs.clone());
                vec![Happening::Text { effect, text, tokens, logprobs }]
            }
            FactBody::ToolCompleted(f) if self.is_current(&f.effect, f.attempt) => {
                self.open.remove(&f.effect);
                self.outcome(&f.effect, true, &f.result, f.duration_us, &f.sandbox)
            }
            FactBody::ChildClosed(f) if self.is_current(&f.effect, f.attempt) => {
                self.open.remove(&f.effect);
                self.usage = self.usage.plus(f.usage);
                self.outcome(&f.effect, f.outcome == Outcome::Completed, &f.text, 0, &Sandbox::default())
            }
            FactBody::CompressionCompleted(f) if self.is_current(&f.effect, f.attempt) => {
                self.open.remove(&f.effect);
                self.usage = self.usage.plus(f.usage);
                Vec::new()
            }
            // It may be tried again: the client hears of it when the calls are joined.
            FactBody::ToolFailed(f) if self.is_current(&f.effect, f.attempt) => {
                self.outcome(&f.effect, false, &f.detail, f.duration_us, &f.sandbox);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn outcome(
        &mut self,
        effect: &EffectId,
        success: bool,
        result: &str,
        duration_us: u64,
        sandbox: &Sandbox,
    ) -> Vec<Happening> {
        let Some(call) = self.call(effect) else {
            return Vec::new();
        };
        call.report.success = Some(success);
        call.report.result = Some(result.to_owned());
        call.duration_us = duration_us;
        call.sandbox = sandbox.clone();
        vec![Happening::ToolResult(call.report.clone())]
    }

    fn event(&mut self, event: &Event, at: Nanos) -> Vec<Happening> {
        self.waiting.event(event);
        match event {
            Event::ExecutionStarted(_) => self.status = Some(Status::Running),
            Event::InferenceRequested(e) => {
                self.asked = Some(e.effect.clone());
                self.open.insert(e.effect.clone(), e.attempt);
            }
            Event::RetryScheduled(e) => {
                self.open.insert(e.effect.clone(), e.attempt);
            }
            Event::EffectCancelled(e) => {
                self.open.remove(&e.effect);
            }
            Event::ToolsRequested(e) => return e.calls.iter().filter_map(|call| self.requested(call)).collect(),
            Event::ToolsJoined(e) => {
                return e.outcomes.iter().flat_map(|o| self.joined(&o.effect, o.success)).collect();
            }
            Event::ChildRequested(e) => return self.child_requested(e).into_iter().collect(),
            Event::CompressionRequested(e) => drop(self.open.insert(e.effect.clone(), e.attempt)),
            Event::ApprovalRequested(e) => {
                self.open.insert(e.approval.clone(), 1);
                let arguments = self.call(&e.approval).map_or(Value::Null, |call| call.report.arguments.clone());
                return vec![Happening::Approval(self.waiting.ask(e, arguments))];
            }
            Event::ApprovalResolved(e) => self.resolved(e),
            Event::ExecutionPaused(_) => self.status = Some(Status::Paused),
            Event::ExecutionResumed(_) => self.status = Some(Status::Running),
            Event::ContextMeasured(_)
            | Event::ContextReplaced(_)
            | Event::BudgetReserved(_)
            | Event::BudgetSettled(_)
            | Event::BudgetExceeded(_)
            | Event::TimerSet(_)
            | Event::TimerCancelled(_)
            | Event::StuckDetected(_) => {}
            Event::ExecutionCompleted(e) => {
                (self.finish, self.iterations, self.usage) = (e.finish, e.iterations, e.usage);
                return self.end(Status::Completed, at, None);
            }
            Event::ExecutionRejected(e) => return self.end(Status::Rejected, at, Some(e)),
            Event::ExecutionFailed(e) => return self.end(Status::Failed, at, Some(e)),
            Event::ExecutionCancelled(e) => return self.end(Status::Cancelled, at, Some(e)),
            Event::ExecutionTimedOut(e) => return self.end(Status::TimedOut, at, Some(e)),
            Event::ExecutionBudgetExhausted(e) => return self.end(Status::BudgetExhausted, at, Some(e)),
        }
        Vec::new()
    }

    fn requested(&mut self, call: &schemas::decision::ToolRequested) -> Option<Happening> {
        if call.refused.is_none() {
            self.open.insert(call.effect.clone(), call.attempt);
        }
        if self.calls.iter().any(|(effect, _)| *effect == call.effect) {
            return None;
        }
        let asked = match &self.submitted {
            Some(s) if s.kind == Kind::Tool || call.name == PLAN => s.call.as_ref(),
            _ => self.last.as_ref().and_then(|l| l.tool_calls.get(call.ordinal as usize)),
        };
        let mut report = asked.map_or_else(
            || ToolCallReport {
                call_id: call.effect.to_string(),
                name: call.name.clone(),
                arguments: Value::Null,
                success: None,
                result: None,
            },
            ToolCallReport::asked,
        );
        let happening = Happening::ToolCall(report.clone());
        if let Some(refused) = &call.refused {
            report.success = Some(false);
            report.result = Some(refused.clone());
        }
        self.calls.push((call.effect.clone(), Call { report, duration_us: 0, sandbox: Sandbox::default() }));
        Some(happening)
    }

    fn child_requested(&mut self, asked: &ChildRequested) -> Option<Happening> {
        let call = schemas::decision::ToolRequested {
            effect: asked.effect.clone(),
            attempt: asked.attempt,
            ordinal: asked.ordinal,
            name: schemas::chat::DELEGATE.to_owned(),
            deadline: asked.limits.deadline,
            refused: None,
        };
        self.requested(&call)
    }

    fn call(&mut self, effect: &EffectId) -> Option<&mut Call> {
        self.calls.iter_mut().rev().find(|(e, _)| e == effect).map(|(_, call)| call)
    }

    fn resolved(&mut self, resolved: &ApprovalResolved) {
        let outcome = self.waiting.resolve(&resolved.approval, resolved.verdict);
        if resolved.verdict == Verdict::Deny {
            self.open.remove(&resolved.approval);
        }
        let Some(call) = self.call(&resolved.approval) else { return };
        match outcome {
            Resolved::Allowed => {}
            Resolved::Edited(arguments) => call.report.arguments = arguments,
            Resolved::Denied(why) => call.report.result = Some(why),
        }
    }

    fn joined(&mut self, effect: &EffectId, success: bool) -> Option<Happening> {
        self.open.remove(effect);
        if success {
            return None;
        }
        let call = self.call(effect)?;
        call.report.success = Some(false);
        call.report.result.get_or_insert_with(|| "the call gave no result".to_owned());
        Some(Happening::ToolResult(call.report.clone()))
    }

    fn end(&mut self, status: Status, at: Nanos, ended: Option<&Ended>) -> Vec<Happening> {
        if let Some(e) = ended {
            (self.iterations, self.usage) = (e.iterations, e.usage);
        }
        if status == Status::BudgetExhausted {
            self.finish = Some(FinishReason::Length);
        }
        self.status = Some(status);
        self.open.clear();
        self.ended = Some((at, ended.cloned()));
        vec![Happening::Ended]
    }

    /// The answer of chat and agent, or the problem it ended with.
    pub(crate) fn answer(&self, exec: ExecutionId) -> Result<Answer, Failure> {
        self.check(exec)?;
        let chat = self.submitted.as_ref().is_some_and(|s| s.kind == Kind::Chat);
        let tool_calls = match &self.last {
            Some(last) if chat => last.tool_calls.iter().map(ToolCallReport::asked).collect(),
            _ => self.calls.iter().map(|(_, call)| call.report.clone()).collect(),
        };
        Ok(Answer {
            execution_id: exec,
            response: self.last.as_ref().map(|l| l.text.clone()).unwrap_or_default(),
            tool_calls,
            iterations: self.iterations,
            finish_reason: self.finish,
            usage: AnswerUsage::new(self.usage, self.cached_tokens),
            logprobs: self.logprobs(self.last.as_ref().map_or(&[], |last| &last.logprobs)),
            choices: self.choices(),
            cached: self.last.as_ref().is_some_and(|last| last.cached),
            dropped_messages: self.last.as_ref().map_or(0, |last| last.dropped_messages),
        })
    }

    /// How likely these tokens were, if the request asks.
    fn logprobs(&self, content: &[TokenLogprob]) -> Option<Logprobs> {
        self.submitted.as_ref().filter(|s| s.sampling.logprobs)?;
        Some(Logprobs { content: content.to_vec() })
    }

    /// All answers of the last inference, if there are several.
    fn choices(&self) -> Vec<Choice> {
        let Some(last) = self.last.as_ref().filter(|last| !last.alternatives.is_empty()) else { return Vec::new() };
        let choice = |text: &str, calls: &[ToolCall], finish_reason, logprobs: &[TokenLogprob]| Choice {
            index: 0,
            message: Message { tool_calls: calls.to_vec(), ..Message::text(Role::Assistant, text) },
            finish_reason,
            logprobs: self.logprobs(logprobs),
        };
        let first = choice(&last.text, &last.tool_calls, last.finish, &last.logprobs);
        let others = last.alternatives.iter().map(|a| choice(&a.text, &a.tool_calls, a.finish, &a.logprobs));
        (0..).zip(std::iter::once(first).chain(others)).map(|(index, choice)| Choice { index, ..choice }).collect()
    }

    /// The answer of a single tool call, or the problem it ended with.
    pub(crate) fn tool_answer(&self, exec: ExecutionId) -> Result<ToolAnswer, Failure> {
        self.check(exec)?;
        let Some((_, call)) = self.calls.first() else {
            return Err(Failure::new(502, "failed", "the call left no result", "read the events").about(exec));
        };
        let success = call.report.success == Some(true);
        let text = call.report.result.clone().unwrap_or_default();
        Ok(ToolAnswer {
            execution_id: exec,
            success,
            result: if success { text.clone() } else { String::new() },
            error: (!success).then_some(text),
            duration_ms: call.duration_us as f64 / 1_000.0,
            sandbox: call.sandbox.clone(),
        })
    }

    /// What indexing came to, or the problem it ended with.
    pub(crate) fn index_answer(&self, exec: ExecutionId) -> Result<IndexAnswer, Failure> {
        self.check(exec)?;
        let last = self.calls.iter().rev().find(|(_, call)| call.report.name == FINISH);
        let text = last.and_then(|(_, call)| call.report.result.as_deref()).unwrap_or_default();
        let report = serde_json::from_str::<IndexReport>(text).map_err(|error| {
            Failure::new(502, "failed", format!("the report cannot be read: {error}"), "read the events").about(exec)
        })?;
        let ended = self.ended.as_ref().map_or(self.created_at, |(at, _)| *at);
        let duration_ms = (ended - self.created_at).max(0) as f64 / 1e6;
        Ok(IndexAnswer { execution_id: exec, report, duration_ms })
    }

    fn check(&self, exec: ExecutionId) -> Result<(), Failure> {
        let read = format!("read GET /internal/executions/{exec}/events");
        let (code, detail) = match &self.ended {
            Some((_, Some(e))) => (e.code.as_str(), e.detail.clone()),
            _ => ("", String::new()),
        };
        if let Some(problem) = &self.refused {
            return Err(Failure(problem.clone()).about(exec));
        }
        let (status, code, next) = match self.status {
            Some(Status::Completed | Status::BudgetExhausted) => return Ok(()),
            Some(Status::Rejected) => (400, code, "correct the request"),
            Some(Status::Cancelled) => (409, "cancelled", "send the request again if it is still wanted"),
            Some(Status::TimedOut) => (504, "deadline", "allow more time or ask for less"),
            Some(Status::Failed) => match code {
                "overloaded" => (503, code, "send the request again in a while"),
                "bad_request" => (400, code, "correct the request"),
                "index" => {
                    (422, code, "name a directory that exists under an allowed root, and see the analysis worker's log")
                }
                "overflow" => (413, code, "send fewer or shorter messages, or use a model with a larger window"),
                _ => (502, code, read.as_str()),
            },
            _ => (504, "deadline", read.as_str()),
        };
        let detail = if detail.is_empty() { "the execution has not ended yet".to_owned() } else { detail };
        Err(Failure::new(status, code, detail, next).about(exec))
    }

    /// Where it stands; none when there is no such execution.
    pub(crate) fn view(&self, exec: ExecutionId) -> Option<ExecutionView> {
        let requested = || self.requested.as_ref().map(|requested| requested.request.agent());
        let agent_type = self.submitted.as_ref().map(|submitted| submitted.agent.as_str()).or_else(requested)?;
        Some(ExecutionView {
            execution_id: exec,
            status: self.status.unwrap_or(Status::Submitted),
            agent_type: agent_type.to_owned(),
            iterations: self.iterations,
            usage: self.usage,
            created_at: rfc3339(self.created_at),
            finished_at: self.ended.as_ref().map(|(at, _)| rfc3339(*at)),
            waiting_for: self.waiting.words(self.open.keys(), |effect| {
                let call = self.calls.iter().rev().find(|(e, _)| e == effect);
                call.map(|(_, call)| call.report.name.clone())
            }),
            response: self.last.as_ref().map(|l| l.text.clone()).unwrap_or_default(),
            error: self.ended.as_ref().and_then(|(_, e)| e.as_ref()).map(|e| format!("{}: {}", e.code, e.detail)),
        })
    }
}

/// Nanoseconds since the epoch as RFC 3339, UTC, with microseconds (civil-from-days of Howard Hinnant).
pub(crate) fn rfc3339(at: Nanos) -> String {
    let seconds = at.div_euclid(1_000_000_000);
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    let micros = at.rem_euclid(1_000_000_000) / 1_000;
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

#[cfg(test)]
mod tests;
