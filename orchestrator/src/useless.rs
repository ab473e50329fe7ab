//! Facts that led to nothing and never could have: what the shell quarantines. Pure.
//!
//! A late result, a second request or a word that came after the end are no such facts: somebody acted in good faith,
//! and was too late.

use runtime::bus::{Kind, Stored};
use schemas::dead_letter::{Reason, objection};
use schemas::{EffectId, Fact, FactBody, subject};

use crate::execution::Execution;

/// Why a message is of no use to its execution as it stands with that message taken in; none when it may have been.
#[must_use]
pub fn reason(execution: &Execution, stored: &Stored) -> Option<(Reason, String)> {
    if stored.kind == Kind::Decision {
        return objection(&subject::decision(stored.exec), &stored.payload);
    }
    let fact = match Fact::read(&stored.payload) {
        Ok(fact) if fact.exec == stored.exec => fact,
        _ => return objection(&subject::fact(stored.exec), &stored.payload),
    };
    // An open execution may ask tomorrow for what it never asked for so far.
    if execution.is_known() && !execution.is_closed() {
        return None;
    }
    if !execution.is_known() {
        // A parent, or a client that goes, may cancel before the request is there: then there is nothing to do.
        let early = matches!(fact.body, FactBody::CancelRequested(_) | FactBody::ExecutionSubmitted(_));
        let detail = || format!("{} of an execution of which the log holds no request", fact.body.name());
        return (!early).then(|| (Reason::UnknownExecution, detail()));
    }
    let (effect, attempt) = about(&fact.body)?;
    let asked = execution.effects.get(effect).map_or(0, |known| known.attempt);
    let detail = || format!("{} of attempt {attempt} of {effect}, which was asked for {asked} times", fact.body.name());
    (attempt > asked).then(|| (Reason::NeverAskedFor, detail()))
}

/// The effect that a fact is about, and which attempt of it.
fn about(body: &FactBody) -> Option<(&EffectId, u32)> {
    match body {
        FactBody::EffectLost(f) => Some((&f.effect, f.attempt)),
        FactBody::ApprovalDecided(f) => Some((&f.approval, 1)),
        other => other.result_of(),
    }
}

#[cfg(test)]
mod tests {
    use schemas::ExecutionId;
    use schemas::fact::{
        CancelMode, CancelRequested, ExecutionSubmitted, Kind as Asked, Limits, Sandbox, ToolCompleted, UserMessage,
    };
    use schemas::wire::encode;

    use super::*;
    use crate::execution::Rules;

    fn exec() -> ExecutionId {
        "0192f0c1-7a3b-7c4d-8e5f-001122334455".parse().expect("canonical")
    }

    fn stored(body: FactBody) -> Stored {
        let payload = encode(&Fact::new(exec(), 1, body)).into();
        Stored { exec: exec(), sequence: 1, stored_at: 1, kind: Kind::Fact, payload }
    }

    fn result(effect: EffectId, attempt: u32) -> Stored {
        let (worker, result) = (String::new(), String::new());
        let sandbox = Sandbox::default();
        stored(FactBody::ToolCompleted(ToolCompleted {
            full: None,
            effect,
            attempt,
            worker,
            result,
            duration_us: 0,
            sandbox,
        }))
    }

    fn cancel() -> Stored {
        stored(FactBody::CancelRequested(CancelRequested { by: "ann".into(), reason: None, mode: CancelMode::Now }))
    }

    /// A tool call that was asked for once, and cancelled.
    fn closed() -> Execution {
        let mut execution = open();
        execution.apply_fact(&Fact::read(&cancel().payload).expect("a fact"));
        execution.settle(Rules::current());
        assert!(execution.is_closed());
        execution
    }

    fn open() -> Execution {
        let limits = Limits { iterations: 1, tokens: 1, tool_calls: 1, deadline: 1_000, ..Limits::default() };
        let call = Some(schemas::ToolCall::new("call-0", "read_file", "{}"));
        let request = ExecutionSubmitted { call, ..ExecutionSubmitted::new(Asked::Tool, "tool", limits) };
        let mut execution = Execution::default();
        execution.apply_fact(&Fact::new(exec(), 1, FactBody::ExecutionSubmitted(Box::new(request))));
        execution.settle(Rules::current());
        execution
    }

    fn why(execution: &Execution, stored: &Stored) -> Option<Reason> {
        reason(execution, stored).map(|(reason, _)| reason)
    }

    #[test]
    fn a_fact_that_nobody_can_read_or_whose_execution_nobody_asked_for_is_useless() {
        let nobody = Execution::default();
        let junk = Stored { payload: "junk".into(), ..cancel() };
        assert_eq!(why(&open(), &junk), Some(Reason::Malformed));
        assert_eq!(why(&nobody, &junk), Some(Reason::Malformed));
        let word =
            stored(FactBody::UserMessage(UserMessage { object: None, id: "m".into(), by: None, text: "hello".into() }));
        assert_eq!(why(&nobody, &word), Some(Reason::UnknownExecution));
        assert_eq!(why(&nobody, &cancel()), None, "a request may follow");
        assert_eq!(why(&open(), &word), None);
        assert_eq!(why(&closed(), &word), None, "said too late, in good faith");
    }

    #[test]
    fn a_result_is_useless_to_an_execution_that_ended_without_asking_for_it() {
        let asked = open().effects.open_effects().map(|(id, _)| id.clone()).next().expect("it asked for its call");
        assert_eq!(why(&closed(), &result(asked.clone(), 1)), None, "late");
        assert_eq!(why(&closed(), &result(asked, 2)), Some(Reason::NeverAskedFor));
        let other: EffectId = "7-tool-3".parse().expect("an effect");
        assert_eq!(why(&closed(), &result(other.clone(), 1)), Some(Reason::NeverAskedFor));
        assert_eq!(why(&open(), &result(other, 1)), None, "it may yet ask");
    }
}
