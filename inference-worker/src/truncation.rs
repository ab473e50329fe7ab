//! Leaves out the beginning of a conversation that does not fit the window. Pure.
//!
//! What goes are whole exchanges, the oldest first. Instructions stay, and so does everything from the last thing that
//! the user said; no call is cut from its result. The same conversation is always cut at the same place.

use std::collections::BTreeSet;

use serde_json::Value;

/// Tokens for which a conversation that is cut leaves room: a cut that leaves room for one word helps nobody.
pub(crate) fn answer_tokens_max(window: usize) -> usize {
    (window / 4).max(1)
}

/// The tokens of the conversation without as few of its oldest exchanges as leave `tokens_max` at most, and how many
/// messages went; when that is out of reach, without all that may go. `whole` are the tokens of all of it.
///
/// # Errors
/// What `encode` says.
pub(crate) fn fit<E>(
    messages: &[Value],
    whole: Vec<u32>,
    tokens_max: usize,
    encode: impl Fn(&[Value]) -> Result<Vec<u32>, E>,
) -> Result<(Vec<u32>, usize), E> {
    let cuts = cuts(messages);
    let (mut low, mut high) = (0, cuts.len());
    let mut best = (whole, 0);
    // What fits is sought among the later cuts, what goes needlessly among the earlier ones. The last is tried in any
    // case, because `best` begins as the whole.
    while low < high {
        let middle = low + (high - low) / 2;
        let kept = without(messages, cuts[middle]);
        let tokens = encode(&kept)?;
        let fits = tokens.len() <= tokens_max;
        if fits || best.0.len() > tokens_max {
            best = (tokens, messages.len() - kept.len());
        }
        match fits {
            true => high = middle,
            false => low = middle + 1,
        }
    }
    Ok(best)
}

/// Where the conversation may begin instead: at something that the user said, when no result behind it answers a call
/// before it.
fn cuts(messages: &[Value]) -> Vec<usize> {
    let mut answered = BTreeSet::new();
    let mut cuts = Vec::new();
    for (index, message) in messages.iter().enumerate().rev() {
        match message["role"].as_str() {
            Some("tool") => drop(answered.insert(message["tool_call_id"].as_str().unwrap_or_default())),
            Some("assistant") => {
                for call in message["tool_calls"].as_array().into_iter().flatten() {
                    answered.remove(call["id"].as_str().unwrap_or_default());
                }
            }
            Some("user") if answered.is_empty() => cuts.push(index),
            _ => {}
        }
    }
    cuts.reverse();
    cuts
}

/// Instructions, and everything from `from` on.
fn without(messages: &[Value], from: usize) -> Vec<Value> {
    let stays = |(index, message): &(usize, &Value)| *index >= from || message["role"] == "system";
    messages.iter().enumerate().filter(stays).map(|(_, message)| message.clone()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A system message, then exchanges of four messages each, then a question.
    fn talk(exchanges: usize) -> Vec<Value> {
        let exchange = |n: usize| {
            let id = format!("call-{n}");
            [
                json!({"role": "user", "content": format!("question {n}")}),
                json!({"role": "assistant", "content": "", "tool_calls": [{"id": id, "type": "function"}]}),
                json!({"role": "tool", "tool_call_id": id, "content": "found"}),
                json!({"role": "assistant", "content": "answer"}),
            ]
        };
        let system = json!({"role": "system", "content": "help"});
        let last = json!({"role": "user", "content": "last"});
        std::iter::once(system).chain((0..exchanges).flat_map(exchange)).chain([last]).collect()
    }

    /// Ten tokens a message.
    fn fitted(messages: &[Value], tokens_max: usize) -> (usize, usize) {
        let encode = |messages: &[Value]| Ok::<_, ()>(vec![0; messages.len() * 10]);
        let whole = encode(messages).unwrap();
        let (tokens, dropped) = fit(messages, whole, tokens_max, encode).unwrap();
        (tokens.len(), dropped)
    }

    #[test]
    fn as_few_of_the_oldest_exchanges_go_as_must() {
        for exchanges in 1..20 {
            for kept in 0..exchanges {
                let expected = (10 * (2 + 4 * kept), 4 * (exchanges - kept));
                for spare in [0, 9, 39] {
                    assert_eq!(fitted(&talk(exchanges), expected.0 + spare), expected);
                }
            }
        }
    }

    #[test]
    fn what_must_stay_stays_even_if_it_does_not_fit() {
        assert_eq!(fitted(&talk(5), 19), (20, 20));
        assert_eq!(fitted(&talk(0), 5), (20, 0));
        let kept = without(&talk(5), *cuts(&talk(5)).last().unwrap());
        assert_eq!(kept, [json!({"role": "system", "content": "help"}), json!({"role": "user", "content": "last"})]);
    }

    #[test]
    fn a_call_is_never_cut_from_its_result() {
        let mut messages = talk(2);
        // Somebody said something between the second call and its result.
        messages.insert(7, json!({"role": "user", "content": "hurry"}));
        assert_eq!(cuts(&messages), [1, 5, 10]);
        assert_eq!(cuts(&talk(2)), [1, 5, 9]);
    }
}
