//! Which of a tool's arguments a model is told of.
//!
//! Each takes room in every prompt, and a small model that knows more of them chooses worse. So a tool marks those that few
//! calls need ([`RARE_ARGUMENT`]), and a model with a small window is not told of them; a tool that few tasks need is marked
//! as a whole. The mark itself is for nobody's eyes.

use schemas::ToolSpec;
use schemas::chat::{RECALL, REMEMBER};
use schemas::fact::Policy;
use schemas::rpc::RARE_ARGUMENT;
use serde_json::Value;

/// Windows below this are small: the built-in tools with all they take fill a tenth of it.
const SMALL_WINDOW: u32 = 4_096;

/// The tools as a model with such a window is told of them; 0 stands for a window that is not known.
///
/// What the policy has called without the model is there in any case.
pub(super) fn to_window(mut tools: Vec<ToolSpec>, window: u32, policy: &Policy) -> Vec<ToolSpec> {
    let is_small = window != 0 && window < SMALL_WINDOW;
    let is_rare = |schema: &Value| schema.get(RARE_ARGUMENT) == Some(&Value::Bool(true));
    let is_called = |name: &str| policy.recall && name == RECALL || policy.remember && name == REMEMBER;
    tools.retain(|tool| !is_small || !is_rare(&tool.function.parameters) || is_called(&tool.function.name));
    for schema in tools.iter_mut().filter_map(|tool| tool.function.parameters.as_object_mut()) {
        schema.shift_remove(RARE_ARGUMENT);
    }
    for arguments in tools.iter_mut().filter_map(|tool| tool.function.parameters.get_mut("properties")?.as_object_mut())
    {
        if is_small {
            arguments.retain(|_, schema| !is_rare(schema));
        }
        for schema in arguments.values_mut().filter_map(Value::as_object_mut) {
            schema.shift_remove(RARE_ARGUMENT);
        }
    }
    tools
}

/// The tools in the least room they take.
pub(super) fn least(tools: &[ToolSpec], policy: &Policy) -> Vec<ToolSpec> {
    to_window(tools.to_vec(), 1, policy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_small_window_is_not_told_of_rare_arguments_and_nobody_of_the_mark() {
        let tool = |properties: Value| vec![ToolSpec::new("find", "", json!({"properties": properties}))];
        let marked = json!({"query": {"type": "string"}, "offset": {"type": "integer", "x-rare": true}});
        let all = json!({"query": {"type": "string"}, "offset": {"type": "integer"}});
        let few = json!({"query": {"type": "string"}});
        let policy = Policy::default();
        assert_eq!(to_window(tool(marked.clone()), 1_024, &policy), tool(few.clone()));
        assert_eq!(least(&tool(marked.clone()), &policy), tool(few));
        for window in [0, 4_096, 131_072] {
            assert_eq!(to_window(tool(marked.clone()), window, &policy), tool(all.clone()));
        }
        let odd = vec![ToolSpec::new("odd", "", json!({"properties": [1]}))];
        assert_eq!(to_window(odd.clone(), 1_024, &policy), odd);
    }

    #[test]
    fn a_small_window_is_not_told_of_rare_tools() {
        let tool = |schema: Value| ToolSpec::new(RECALL, "", schema);
        let (rare, usual) = (tool(json!({"type": "object", "x-rare": true})), tool(json!({"type": "object"})));
        let (policy, recalls) = (Policy::default(), Policy { recall: true, ..Policy::default() });
        assert_eq!(to_window(vec![rare.clone(), usual.clone()], 1_024, &policy), [usual.clone()].to_vec());
        assert_eq!(to_window(vec![rare.clone()], 1_024, &recalls), [usual.clone()].to_vec(), "the policy calls it");
        assert_eq!(to_window(vec![rare], 4_096, &policy), [usual].to_vec());
    }
}
