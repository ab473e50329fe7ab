//! Who asks for executions, and what people do to them while they run. With the request comes the temper of the model
//! and the tools that will serve it: a seed's executions differ mostly in these.

use schemas::chat::{Message, Role, Sampling, ToolCall, ToolSpec};
use schemas::code::PLAN;
use schemas::fact::*;
use schemas::wire::Nanos;
use schemas::{EffectId, ExecutionId, Fact, FactBody, Record};
use serde_json::json;

use super::bus::Job;
use super::world::{Wakeup, World};
use super::{MILLISECOND, SECOND};
use crate::execution::{DELEGATE, RECALL, REMEMBER};

/// Agent types that may be delegated to; a lead may delegate to helpers.
pub(super) const LEAD: &str = "lead";
pub(super) const HELPER: &str = "helper";

/// How the model and the tools of an execution behave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Temper {
    /// What the model's window really holds.
    window: u64,
    talks: bool,
    habit: Habit,
    /// Workers that take a job of this kind die.
    poison: Option<&'static str>,
    /// Its tools take longer than anybody waits.
    slow: bool,
    /// It rather delegates than works.
    delegates: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Habit {
    None,
    Repeats,
    Alternates,
}

impl Default for Temper {
    fn default() -> Self {
        Self { window: 1024, talks: false, habit: Habit::None, poison: None, slow: false, delegates: false }
    }
}

impl Temper {
    pub(super) const fn window(&self) -> u64 {
        self.window
    }

    pub(super) const fn talks(&self) -> bool {
        self.talks
    }

    pub(super) const fn delegates(&self) -> bool {
        self.delegates
    }

    pub(super) const fn is_slow(&self) -> bool {
        self.slow
    }

    pub(super) fn kills(&self, job: &Job) -> bool {
        self.poison.is_some_and(|kind| job.effect.as_str().contains(kind))
    }

    /// The one call it makes in a turn, if it is of that kind.
    pub(super) const fn always_calls(&self, turn: u32) -> Option<&'static str> {
        match self.habit {
            Habit::None => None,
            Habit::Alternates if turn.is_multiple_of(2) => Some("read_file"),
            Habit::Repeats | Habit::Alternates => Some("search_code"),
        }
    }
}

impl World {
    pub(super) fn submit_requests(&mut self) {
        for n in 0..6 + self.chance.index(7) {
            let at = self.now + self.chance.span(0, 30_000);
            let exec = self.new_id(at);
            let temper = self.temper();
            self.tempers.insert(exec, temper);
            let request = self.request(at, temper);
            let deadline = request.limits.deadline;
            let fact = Fact::new(exec, at, FactBody::ExecutionSubmitted(Box::new(request)));
            if n % 4 == 0 {
                let again = at + self.chance.span(0, 2_000);
                self.at(again, Wakeup::Append(Box::new(fact.clone())));
            }
            self.at(at, Wakeup::Append(Box::new(fact)));
            for _ in 0..self.chance.index(3) {
                let when = at + self.chance.span(1, 25_000);
                self.somebody_acts(exec, when, deadline);
            }
        }
    }

    fn new_id(&mut self, at: Nanos) -> ExecutionId {
        let mut random = [0; 10];
        random[..8].copy_from_slice(&self.chance.next().to_be_bytes());
        let millis = u64::try_from(at / MILLISECOND).unwrap_or(0);
        ExecutionId::new(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
    }

    fn temper(&mut self) -> Temper {
        let window = self.chance.pick(&[400, 700, 1024, 2048]);
        let habit = match self.chance.below(16) {
            0 => Habit::Repeats,
            1 => Habit::Alternates,
            _ => Habit::None,
        };
        let poison = self.chance.percent(6).then(|| self.chance.pick(&["-infer-", "-tool-", "-compress-"]));
        let talks = self.chance.percent(30) || poison == Some("-compress-");
        let (slow, delegates) = (self.chance.percent(5), !talks && habit == Habit::None && self.chance.percent(35));
        Temper { window, talks, habit, poison, slow, delegates }
    }

    fn request(&mut self, at: Nanos, temper: Temper) -> ExecutionSubmitted {
        let tool = |name: &str| ToolSpec::new(name, "", json!({"type": "object"}));
        let kind = match self.chance.below(20) {
            0..=2 => Kind::Chat,
            3 => Kind::Tool,
            4 => Kind::Index,
            _ => Kind::Agent,
        };
        // Some models hold less than they are said to.
        let window = if self.chance.percent(12) { temper.window * 3 / 2 } else { temper.window };
        let busy = temper.talks || temper.habit != Habit::None;
        let limits = Limits {
            iterations: if busy { 16 } else { 1 + self.chance.below(7) as u32 },
            tokens: if busy { 60_000 } else { 600 + self.chance.below(12_000) },
            tool_calls: if busy { 40 } else { self.chance.below(12) as u32 },
            deadline: at + self.chance.span(if temper.slow { 200_000 } else { 20_000 }, 260_000),
            tokens_in: self.chance.percent(10).then_some(1_500),
            tokens_out: self.chance.percent(10).then_some(120),
            children: if temper.delegates { 9 } else { self.chance.below(5) as u32 },
            depth: if temper.delegates { 2 } else { self.chance.below(3) as u32 },
        };
        let mut messages = vec![Message::text(Role::User, "Where is x?")];
        if self.chance.percent(60) {
            messages.insert(0, Message::text(Role::System, "You help."));
        }
        if self.chance.percent(2) {
            messages.clear();
        }
        let mut tools: Vec<ToolSpec> = ["search_code", "read_file", "guarded"].map(tool).into();
        if temper.delegates || self.chance.percent(70) {
            tools.push(tool(DELEGATE));
        }
        let recall = self.chance.percent(20);
        if recall {
            tools.push(tool(RECALL));
        }
        let remember = self.chance.percent(20);
        if remember {
            tools.push(tool(REMEMBER));
        }
        ExecutionSubmitted {
            model: "tiny".into(),
            window: window as u32,
            messages,
            tools,
            call: match kind {
                Kind::Tool => Some(ToolCall::new("call-0", "search_code", "{}")),
                Kind::Index => Some(ToolCall::new("plan", PLAN, r#"{"workspace": "w"}"#)),
                Kind::Chat | Kind::Agent => None,
            },
            // Some chats want several answers.
            sampling: Sampling {
                n: (kind == Kind::Chat).then_some(1 + (limits.tokens % 3) as u32),
                ..Sampling::default()
            },
            policy: self.policy(recall, remember),
            agents: vec![self.agent(LEAD, &[HELPER]), self.agent(HELPER, &[])],
            ..ExecutionSubmitted::new(kind, "coder", limits)
        }
    }

    fn policy(&mut self, recall: bool, remember: bool) -> Policy {
        let asks = [AtLimit::End, AtLimit::End, AtLimit::Ask];
        Policy {
            approve: vec!["guarded".into()],
            approval_ms: self.chance.pick(&[0, 700, 6_000, 30_000]),
            join: self.chance.pick(&[Join::All, Join::All, Join::Any, Join::Quorum(2), Join::FirstError]),
            at_limit: self.chance.pick(&asks),
            small_model: None,
            recall,
            remember,
        }
    }

    fn agent(&mut self, name: &str, agents: &[&str]) -> AgentSpec {
        let tool = |name: &str| ToolSpec::new(name, "", json!({"type": "object"}));
        AgentSpec {
            name: name.into(),
            system: format!("You are a {name}."),
            model: "tiny".into(),
            window: 1024,
            tools: ["search_code", "guarded", DELEGATE].map(tool).into(),
            agents: agents.iter().map(|a| (*a).to_owned()).collect(),
            iterations: 1 + self.chance.below(4) as u32,
            tokens: 8_000,
            tool_calls: 5,
            deadline_ms: 5_000 + self.chance.below(60_000),
            policy: self.policy(false, false),
        }
    }

    /// One thing that somebody does, or several at once.
    fn somebody_acts(&mut self, exec: ExecutionId, at: Nanos, deadline: Nanos) {
        let bodies = match self.chance.below(20) {
            0 | 1 => vec![cancel(CancelMode::Now)],
            2 | 3 => vec![cancel(CancelMode::Graceful)],
            4 => vec![cancel(CancelMode::Graceful), cancel(CancelMode::Now)],
            5..=8 => vec![pause()],
            9 => vec![pause(), resume()],
            10 => vec![pause(), cancel(CancelMode::Now)],
            11 => vec![pause(), cancel(CancelMode::Graceful)],
            12 => vec![grant("tokens"), grant("iterations")],
            13 => {
                // A gateway whose clock is far ahead: it is late by what it says.
                let late = deadline + SECOND;
                let bodies = if self.chance.percent(50) { vec![pause(), say("late")] } else { vec![say("late")] };
                self.append_all(exec, at, bodies.first().cloned());
                return self.append_all(exec, late, bodies.get(1).cloned());
            }
            _ => vec![say(&format!("and {}?", at / MILLISECOND))],
        };
        self.append_all(exec, at, bodies);
    }

    /// Facts of one moment: whoever folds them may find them all before it decides.
    fn append_all(&mut self, exec: ExecutionId, at: Nanos, bodies: impl IntoIterator<Item = FactBody>) {
        for (i, body) in (0..).zip(bodies) {
            self.at(at, Wakeup::Append(Box::new(Fact::new(exec, at + i, body))));
        }
    }

    /// A person is asked about a call, and answers, or does not, or changes their mind.
    pub(super) fn ask_person(&mut self, exec: ExecutionId, approval: &EffectId) {
        if self.chance.percent(15) {
            return;
        }
        for _ in 0..1 + self.chance.index(2) {
            let verdict = self.chance.pick(&[Verdict::Allow, Verdict::Allow, Verdict::Deny, Verdict::Edit]);
            let decided = ApprovalDecided {
                approval: approval.clone(),
                by: "p".into(),
                verdict,
                arguments: (verdict == Verdict::Edit).then(|| r#"{"x": "edited"}"#.to_owned()),
                reason: None,
            };
            let at = self.now + self.chance.span(5, 12_000);
            self.append_all(exec, at, [FactBody::ApprovalDecided(decided)]);
        }
    }

    /// Somebody sees that work is being delegated, and now and then does not want that.
    pub(super) fn somebody_sees_a_child(&mut self, exec: ExecutionId) {
        if self.chance.percent(6) {
            let at = self.now + self.chance.span(1, 4_000);
            self.append_all(exec, at, [cancel(CancelMode::Now)]);
        }
    }

    /// Somebody sees that an execution waits: for more, or for a word.
    pub(super) fn somebody_sees_a_pause(&mut self, record: &Record, by: &str) {
        let at = self.now + self.chance.span(5, 10_000);
        let budget = by == "budget";
        let bodies = match self.chance.below(24) {
            0..=2 if budget => vec![grant("iterations")],
            3..=5 if budget => vec![grant("iterations"), grant("tokens"), grant("tokens_in"), grant("tokens_out")],
            6 | 7 if budget => vec![grant("tool_calls")],
            0..=9 => vec![resume()],
            10 | 11 => vec![resume(), pause()],
            12 => vec![resume(), cancel(CancelMode::Now)],
            13 => vec![resume(), cancel(CancelMode::Graceful)],
            14 => vec![cancel(CancelMode::Now)],
            15 => vec![cancel(CancelMode::Graceful)],
            16 | 17 => {
                // Its clock is far ahead with the second word.
                self.append_all(record.exec, at, [resume()]);
                let late = Fact::new(record.exec, at + 400 * SECOND, say("late"));
                return self.at(at, Wakeup::Append(Box::new(late)));
            }
            _ => vec![],
        };
        self.append_all(record.exec, at, bodies);
    }
}

fn cancel(mode: CancelMode) -> FactBody {
    FactBody::CancelRequested(CancelRequested { by: "user".into(), reason: None, mode })
}

fn pause() -> FactBody {
    FactBody::PauseRequested(PauseRequested { by: "p".into(), reason: None })
}

fn resume() -> FactBody {
    FactBody::ResumeRequested(ResumeRequested { by: "p".into() })
}

fn grant(dimension: &str) -> FactBody {
    FactBody::BudgetGranted(BudgetGranted { by: "p".into(), dimension: dimension.into(), amount: 2_000 })
}

fn say(text: &str) -> FactBody {
    FactBody::UserMessage(UserMessage { object: None, id: text.into(), by: None, text: text.into() })
}
