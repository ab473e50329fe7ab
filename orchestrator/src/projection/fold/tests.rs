use schemas::fact::{CancelRequested, ExecutionSubmitted, Kind as RequestKind, Limits};
use schemas::wire::encode;
use schemas::{Message as Said, Role};

use super::*;

fn exec() -> ExecutionId {
    "0192f0c1-7a3b-7c4d-8e5f-001122334455".parse().expect("canonical id")
}

fn placed(sequence: u64, payload: Vec<u8>) -> Placed {
    (sequence, Some(Stored { exec: exec(), sequence, stored_at: 0, kind: Kind::Fact, payload: payload.into() }))
}

fn request(exec: ExecutionId) -> Vec<u8> {
    let request = ExecutionSubmitted {
        messages: vec![Said::text(Role::User, "hi")],
        ..ExecutionSubmitted::new(RequestKind::Chat, "chat", Limits::default())
    };
    encode(&Fact::new(exec, 1, FactBody::ExecutionSubmitted(Box::new(request))))
}

fn cancel() -> Vec<u8> {
    let cancel = CancelRequested { by: "p".into(), reason: None, mode: Default::default() };
    encode(&Fact::new(exec(), 2, FactBody::CancelRequested(cancel)))
}

fn folded(messages: &[Placed], known: impl IntoIterator<Item = Known>) -> Changes {
    let known = known.into_iter().map(|known| (exec(), known)).collect();
    fold(exec().partition(), messages, known)
}

#[test]
fn an_execution_begins_once_under_the_place_of_its_request() {
    let changes = folded(&[placed(3, request(exec())), placed(4, request(exec())), placed(5, cancel())], []);
    let execution = &changes.executions[&exec()];
    let place = 3 * 16 + i64::from(exec().partition().number());
    assert_eq!(execution.begun, Some((place, "hi".to_owned())));
    assert_eq!(execution.summary.row.messages, 3);
}

#[test]
fn facts_of_nobody_and_of_executions_that_have_ended_change_nothing() {
    assert!(folded(&[placed(3, cancel()), (4, None)], []).executions.is_empty());
    assert!(folded(&[placed(3, cancel()), placed(4, cancel())], [Known::Ended]).executions.is_empty());
}

#[test]
fn what_cannot_be_read_or_belongs_elsewhere_is_counted_and_passed_over() {
    let other = "0192f0c1-7a3b-7c4d-8e5f-001122334456".parse().expect("canonical id");
    let changes = folded(&[placed(3, b"x".to_vec()), placed(4, request(other)), placed(5, request(exec()))], []);
    assert_eq!((changes.unreadable, changes.executions.len()), (2, 1));
}
