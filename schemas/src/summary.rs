//! One execution in a row: the fold of its facts and decisions for all who need less than its whole state, such as
//! tables and live lists. Pure, and total: what makes no sense changes nothing.
//!
//! A result counts only while its effect is open and its attempt is the current one, as the orchestrator counts it.
//! A summary can be written down between any two messages and taken up again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::api::Status;
use crate::chat::{DELEGATE, Role, ToolCall, Usage};
use crate::code::PLAN;
use crate::decision::{ApprovalResolved, Ended, Event, Record, ToolOutcome, ToolRequested, failure_code};
use crate::executions::{ExecutionRow, TEXT_BYTES_MAX, TITLE_CHARACTERS, ToolCallRow};
use crate::fact::{ApprovalDecided, CancelMode, ExecutionSubmitted, Fact, FactBody, Kind, Outcome, Sandbox, Verdict};
use crate::ids::{EffectId, ExecutionId};
use crate::wire::Nanos;

/// An execution as far as its messages were folded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// What lists show.
    pub row: ExecutionRow,
    /// The model that summarises its context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    small_model: Option<String>,
    /// The newest fact's time; time goes by in facts only.
    now: Nanos,
    /// When it ends whatever happens.
    deadline: Nanos,
    /// It was cancelled, or its time is over: what is open may still come, and expires no more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    stopping: bool,
    /// Effects that are open.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    open: BTreeMap<EffectId, Open>,
    /// What was last asked for: the calls of the newest answer, or the one of the request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    asked: Vec<ToolCall>,
    /// Calls whose outcome may still change.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    calls: BTreeMap<EffectId, ToolCallRow>,
    /// Calls that wait for a person.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    waiting: BTreeMap<EffectId, Waiting>,
}

/// An effect whose result counts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Open {
    /// Of this attempt.
    attempt: u32,
    /// Until then; inferences and children have no time of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<Nanos>,
}

/// A call that waits for a person.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Waiting {
    attempt: u32,
    /// When waiting counts as a denial.
    expires: Nanos,
    /// The first word about it; later ones do not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    word: Option<ApprovalDecided>,
}

/// What a message changed beside the row.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A tool call is as this says.
    Call(ToolCallRow),
    /// An inference ended.
    Inference(Box<InferenceRow>),
    /// The newest answer.
    Response(String),
}

/// One inference or compression that ended, and how fast.
#[derive(Clone, Debug, PartialEq)]
pub struct InferenceRow {
    /// The effect.
    pub effect: EffectId,
    /// Which attempt of it.
    pub attempt: u32,
    /// `inference` or `compression`.
    pub purpose: &'static str,
    /// The model.
    pub model: String,
    /// Who did it.
    pub worker: String,
    /// The class of the failure; none when it gave an answer.
    pub error: Option<&'static str>,
    /// Why it stopped.
    pub finish: Option<String>,
    /// Queue, prefill and decode, microseconds; none where nothing ran or nobody said.
    pub timing_us: Option<[u64; 3]>,
    /// Tokens read and generated.
    pub usage: Usage,
    /// Tokens read that did not have to be computed.
    pub cached_tokens: u64,
    /// An equal request had been answered before.
    pub cached: bool,
    /// When it ended.
    pub at: Nanos,
}

impl InferenceRow {
    /// From the publishing of the job to the first token, microseconds.
    #[must_use]
    pub fn ttft_us(&self) -> Option<u64> {
        self.timing_us.map(|[queue, prefill, _]| queue + prefill)
    }
}

impl Summary {
    /// The summary that begins with this fact; none unless it is the request.
    #[must_use]
    pub fn begin(fact: &Fact) -> Option<Self> {
        let FactBody::ExecutionSubmitted(request) = &fact.body else { return None };
        Some(Self::submitted(fact.exec, fact.at, request))
    }

    fn submitted(exec: ExecutionId, at: Nanos, request: &ExecutionSubmitted) -> Self {
        let row = ExecutionRow {
            execution_id: exec,
            kind: request.kind,
            status: Status::Submitted,
            agent_type: request.agent.clone(),
            model: request.model.clone(),
            user_id: request.user_id.clone(),
            workspace: request.workspace.clone(),
            title: title(request),
            iterations: 0,
            usage: Usage::default(),
            tool_calls: 0,
            created_at: at,
            finished_at: None,
            error: None,
            parent: request.parent.as_ref().map(|parent| parent.exec),
            messages: 1,
        };
        Self {
            row,
            small_model: request.policy.small_model.clone(),
            now: at,
            deadline: request.limits.deadline,
            stopping: at >= request.limits.deadline,
            open: BTreeMap::new(),
            asked: request.call.iter().cloned().collect(),
            calls: BTreeMap::new(),
            waiting: BTreeMap::new(),
        }
    }

    /// Whether nothing that follows counts.
    #[must_use]
    pub const fn is_ended(&self) -> bool {
        self.row.finished_at.is_some()
    }

    /// Takes in a fact.
    pub fn fact(&mut self, fact: &Fact) -> Vec<Change> {
        if self.is_ended() {
            return Vec::new();
        }
        self.row.messages += 1;
        self.now = self.now.max(fact.at);
        let changes = match &fact.body {
            FactBody::ApprovalDecided(f) => {
                if let Some(waiting) = self.waiting.get_mut(&f.approval).filter(|call| call.expires > self.now) {
                    waiting.word.get_or_insert_with(|| f.clone());
                }
                Vec::new()
            }
            FactBody::EffectLost(f) => {
                self.close(&f.effect, f.attempt);
                Vec::new()
            }
            FactBody::CancelRequested(f) => {
                self.stopping |= f.mode == CancelMode::Now;
                Vec::new()
            }
            body => match body.result_of() {
                Some((effect, attempt)) if self.close(effect, attempt) => self.result(fact),
                _ => Vec::new(),
            },
        };
        self.stopping |= self.now >= self.deadline;
        if !self.stopping {
            self.open.retain(|_, open| open.expires.is_none_or(|expires| expires > self.now));
        }
        changes
    }

    /// Whether that attempt was open; it no longer is.
    fn close(&mut self, effect: &EffectId, attempt: u32) -> bool {
        let counts = self.open.get(effect).is_some_and(|open| open.attempt == attempt);
        if counts {
            self.open.remove(effect);
        }
        counts
    }

    fn open(&mut self, effect: &EffectId, attempt: u32, expires: Option<Nanos>) {
        self.open.insert(effect.clone(), Open { attempt, expires });
    }

    /// A result that counts.
    fn result(&mut self, fact: &Fact) -> Vec<Change> {
        match &fact.body {
            FactBody::InferenceCompleted(f) => {
                self.row.iterations += 1;
                self.spend(f.usage);
                self.asked.clone_from(&f.tool_calls);
                let finish = serde_json::to_value(f.finish).ok().and_then(|name| name.as_str().map(str::to_owned));
                let timing = [f.timing.queue_us, f.timing.prefill_us, f.timing.decode_us];
                let inference = InferenceRow {
                    finish,
                    timing_us: (!f.cached).then_some(timing),
                    usage: f.usage,
                    cached_tokens: f.cached_tokens,
                    cached: f.cached,
                    ..self.inference(&f.effect, f.attempt, &f.worker, fact.at)
                };
                vec![Change::Inference(Box::new(inference)), Change::Response(f.text.clone())]
            }
            FactBody::CompressionCompleted(f) => {
                self.spend(f.usage);
                let row = self.compression(&f.effect, f.attempt, &f.worker, fact.at);
                vec![Change::Inference(Box::new(InferenceRow { usage: f.usage, ..row }))]
            }
            FactBody::InferenceFailed(f) => {
                let row = self.inference(&f.effect, f.attempt, &f.worker, fact.at);
                vec![Change::Inference(Box::new(InferenceRow { error: Some(failure_code(f.class)), ..row }))]
            }
            FactBody::CompressionFailed(f) => {
                let row = self.compression(&f.effect, f.attempt, &f.worker, fact.at);
                vec![Change::Inference(Box::new(InferenceRow { error: Some(failure_code(f.class)), ..row }))]
            }
            FactBody::ToolCompleted(f) => {
                self.outcome(&f.effect, true, &f.result, Some((&f.worker, f.duration_us, &f.sandbox)))
            }
            FactBody::ToolFailed(f) => {
                self.outcome(&f.effect, false, &f.detail, Some((&f.worker, f.duration_us, &f.sandbox)))
            }
            FactBody::ChildClosed(f) => {
                self.spend(f.usage);
                self.outcome(&f.effect, f.outcome == Outcome::Completed, &f.text, None)
            }
            _ => Vec::new(),
        }
    }

    fn spend(&mut self, usage: Usage) {
        self.row.usage = self.row.usage.plus(usage);
    }

    fn inference(&self, effect: &EffectId, attempt: u32, worker: &str, at: Nanos) -> InferenceRow {
        InferenceRow {
            effect: effect.clone(),
            attempt,
            purpose: "inference",
            model: self.row.model.clone(),
            worker: worker.to_owned(),
            error: None,
            finish: None,
            timing_us: None,
            usage: Usage::default(),
            cached_tokens: 0,
            cached: false,
            at,
        }
    }

    fn compression(&self, effect: &EffectId, attempt: u32, worker: &str, at: Nanos) -> InferenceRow {
        let model = self.small_model.as_ref().unwrap_or(&self.row.model).clone();
        InferenceRow { purpose: "compression", model, ..self.inference(effect, attempt, worker, at) }
    }

    fn outcome(
        &mut self,
        effect: &EffectId,
        success: bool,
        result: &str,
        done: Option<(&String, u64, &Sandbox)>,
    ) -> Vec<Change> {
        let kind = self.row.kind;
        let change = self.change(effect, |call| {
            call.success = Some(success);
            call.result = Some(shortened(result, TEXT_BYTES_MAX));
            if let Some((worker, duration_us, sandbox)) = done {
                call.worker = Some(worker.clone());
                call.duration_ms = Some(duration_us as f64 / 1e3);
                call.sandbox = Some(sandbox.tier.clone()).filter(|tier| !tier.is_empty());
            }
        });
        let answers = success && matches!(kind, Kind::Tool | Kind::Index);
        let response = answers.then(|| Change::Response(result.to_owned()));
        change.into_iter().chain(response).collect()
    }

    fn change(&mut self, effect: &EffectId, change: impl FnOnce(&mut ToolCallRow)) -> Option<Change> {
        let call = self.calls.get_mut(effect)?;
        change(call);
        Some(Change::Call(call.clone()))
    }

    /// Takes in a decision.
    pub fn decision(&mut self, record: &Record) -> Vec<Change> {
        if self.is_ended() {
            return Vec::new();
        }
        self.row.messages += 1;
        record.events.iter().flat_map(|event| self.event(event, record.at)).collect()
    }

    fn event(&mut self, event: &Event, at: Nanos) -> Vec<Change> {
        match event {
            Event::ExecutionStarted(started) => {
                self.row.status = Status::Running;
                if !started.model.is_empty() {
                    self.row.model.clone_from(&started.model);
                }
            }
            Event::ExecutionPaused(_) => self.row.status = Status::Paused,
            Event::ExecutionResumed(_) => self.row.status = Status::Running,
            Event::InferenceRequested(e) => self.open(&e.effect, e.attempt, None),
            Event::CompressionRequested(e) => self.open(&e.effect, e.attempt, Some(e.deadline)),
            Event::EffectCancelled(e) => {
                self.open.remove(&e.effect);
                self.waiting.remove(&e.effect);
            }
            Event::RetryScheduled(e) => drop(self.open.remove(&e.effect)),
            Event::ToolsRequested(e) => return e.calls.iter().filter_map(|call| self.requested(call, at)).collect(),
            Event::ChildRequested(e) => {
                let call = ToolRequested {
                    effect: e.effect.clone(),
                    attempt: e.attempt,
                    ordinal: e.ordinal,
                    name: DELEGATE.to_owned(),
                    deadline: e.limits.deadline,
                    refused: None,
                };
                let change = self.requested(&call, at);
                self.open(&e.effect, e.attempt, None);
                return change.into_iter().collect();
            }
            Event::ToolsJoined(e) => {
                let ended = |outcome: &ToolOutcome| self.joined(&outcome.effect, outcome.success);
                return e.outcomes.iter().filter_map(ended).collect();
            }
            Event::ApprovalRequested(e) => {
                let attempt = self.open.remove(&e.approval).map_or(1, |open| open.attempt);
                self.waiting.insert(e.approval.clone(), Waiting { attempt, expires: e.expires, word: None });
            }
            Event::ApprovalResolved(e) => return self.resolved(e).into_iter().collect(),
            Event::ContextMeasured(_)
            | Event::ContextReplaced(_)
            | Event::BudgetReserved(_)
            | Event::BudgetSettled(_)
            | Event::BudgetExceeded(_)
            | Event::TimerSet(_)
            | Event::TimerCancelled(_)
            | Event::StuckDetected(_) => {}
            Event::ExecutionCompleted(e) => {
                (self.row.iterations, self.row.usage) = (e.iterations, e.usage);
                self.end(Status::Completed, at);
            }
            Event::ExecutionRejected(e) => self.fail(Status::Rejected, at, e),
            Event::ExecutionFailed(e) => self.fail(Status::Failed, at, e),
            Event::ExecutionCancelled(e) => self.fail(Status::Cancelled, at, e),
            Event::ExecutionTimedOut(e) => self.fail(Status::TimedOut, at, e),
            Event::ExecutionBudgetExhausted(e) => self.fail(Status::BudgetExhausted, at, e),
        }
        Vec::new()
    }

    fn requested(&mut self, asked: &ToolRequested, at: Nanos) -> Option<Change> {
        if asked.refused.is_none() {
            self.open(&asked.effect, asked.attempt, Some(asked.deadline));
        }
        if self.calls.contains_key(&asked.effect) {
            return None;
        }
        // The first call of indexing is the request's; its parts are made up by the rules and stand nowhere in words.
        let whole = match self.row.kind {
            Kind::Tool => self.asked.first(),
            Kind::Index => self.asked.first().filter(|_| asked.name == PLAN),
            Kind::Chat | Kind::Agent => self.asked.get(asked.ordinal as usize),
        };
        let call = ToolCallRow {
            effect: asked.effect.clone(),
            position: self.row.tool_calls,
            tool_name: whole.map_or_else(|| asked.name.clone(), |call| call.function.name.clone()),
            arguments: whole.map_or_else(String::new, |call| shortened(&call.function.arguments, TEXT_BYTES_MAX)),
            result: asked.refused.as_ref().map(|why| shortened(why, TEXT_BYTES_MAX)),
            success: asked.refused.is_some().then_some(false),
            duration_ms: None,
            sandbox: None,
            worker: None,
            created_at: at,
        };
        self.row.tool_calls += 1;
        self.calls.insert(asked.effect.clone(), call.clone());
        Some(Change::Call(call))
    }

    fn resolved(&mut self, resolved: &ApprovalResolved) -> Option<Change> {
        let effect = &resolved.approval;
        let waiting = self.waiting.remove(effect)?;
        if resolved.verdict == Verdict::Deny {
            return None;
        }
        self.open(effect, waiting.attempt, Some(resolved.deadline));
        let arguments = waiting.word?.arguments?;
        self.change(effect, |call| call.arguments = shortened(&arguments, TEXT_BYTES_MAX))
    }

    fn joined(&mut self, effect: &EffectId, success: bool) -> Option<Change> {
        self.open.remove(effect);
        let mut call = self.calls.remove(effect)?;
        if call.success == Some(success) {
            return None;
        }
        call.success = Some(success);
        call.result.get_or_insert_with(|| "the call gave no result".to_owned());
        Some(Change::Call(call))
    }

    fn fail(&mut self, status: Status, at: Nanos, ended: &Ended) {
        (self.row.iterations, self.row.usage) = (ended.iterations, ended.usage);
        self.row.error = Some(shortened(&format!("{}: {}", ended.code, ended.detail), TEXT_BYTES_MAX));
        self.end(status, at);
    }

    fn end(&mut self, status: Status, at: Nanos) {
        (self.row.status, self.row.finished_at) = (status, Some(at));
        self.open.clear();
        self.asked.clear();
        self.calls.clear();
        self.waiting.clear();
    }
}

/// What was asked, whole: the newest user message, or a call as its tool and arguments.
#[must_use]
pub fn instruction(request: &ExecutionSubmitted) -> String {
    if let (Kind::Tool | Kind::Index, Some(call)) = (request.kind, &request.call) {
        return format!("{} {}", call.function.name, call.function.arguments);
    }
    let said = request.messages.iter().rev().find(|message| message.role == Role::User);
    said.map_or_else(String::new, |said| match &said.object {
        Some(object) if said.content.is_empty() => {
            format!("(a text of {} bytes: object {})", object.bytes, object.sha256)
        }
        _ => said.content.clone(),
    })
}

fn title(request: &ExecutionSubmitted) -> String {
    let words = instruction(request);
    let line: Vec<&str> = words.split_whitespace().take(TITLE_CHARACTERS).collect();
    line.join(" ").chars().take(TITLE_CHARACTERS).collect()
}

/// A text of at most so many bytes; one that is cut says so.
#[must_use]
pub fn shortened(text: &str, bytes_max: usize) -> String {
    const CUT: &str = " …";
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let end = (0..=bytes_max.saturating_sub(CUT.len())).rev().find(|end| text.is_char_boundary(*end));
    format!("{}{CUT}", &text[..end.unwrap_or(0)])
}

#[cfg(test)]
mod tests;
