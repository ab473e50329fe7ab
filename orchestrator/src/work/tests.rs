//! What a continued conversation leaves out when it has become longer than the window.

use schemas::chat::ToolCall;

use super::*;

/// An exchange with a call in it, about 130 estimated tokens.
fn exchange(n: usize) -> Vec<Message> {
    let mut call = Message::text(Role::Assistant, "");
    call.tool_calls = vec![ToolCall::new(format!("call-{n}"), "read_file", "{}")];
    let mut result = Message::text(Role::Tool, "x".repeat(200));
    result.tool_call_id = Some(format!("call-{n}"));
    vec![Message::text(Role::User, format!("question {n}")), call, result, Message::text(Role::Assistant, "answer")]
}

fn history(exchanges: usize) -> Vec<Message> {
    let system = Message::text(Role::System, "You help.");
    std::iter::once(system).chain((0..exchanges).flat_map(exchange)).collect()
}

#[test]
fn a_conversation_that_fits_stands_whole() {
    assert_eq!(recent(&history(3), 1_024, 100), history(3));
    assert_eq!(recent(&history(30), 0, 100), history(30), "a model whose window is not known gets everything");
}

#[test]
fn of_a_longer_one_the_newest_exchanges_stay_whole_behind_the_instructions() {
    let kept = recent(&history(30), 1_024, 100);
    assert_eq!(kept[0].role, Role::System);
    assert_eq!(kept[1].role, Role::User, "it begins with what somebody said");
    let exchanges = (kept.len() - 1) / 4;
    assert!((2..30).contains(&exchanges), "{exchanges} are left");
    assert_eq!(kept[1..], history(30)[1 + 4 * (30 - exchanges)..], "the newest");
    let tokens: u64 = kept.iter().map(estimate).sum();
    assert!(tokens + 100 <= 768, "{tokens} leave room");
    assert!(tokens + 100 + exchange(0).iter().map(estimate).sum::<u64>() > 768, "no room is wasted");
}

#[test]
fn a_present_that_fills_the_window_leaves_only_the_instructions() {
    assert_eq!(recent(&history(30), 1_024, 900), history(0));
}
