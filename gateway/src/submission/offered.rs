//! Which of a tool's arguments a model is told of.
//!
//! Each takes room in every prompt, and a small model that knows more of them chooses worse. So a tool marks those that few
//! calls need ([`RARE_ARGUMENT`]), and a model with a small window is not told of them. The mark itself is for nobody's eyes.

use schemas::ToolSpec;
use schemas::rpc::RARE_ARGUMENT;
use serde_json::Value;

/// Windows below this are small: the built-in tools with all they take fill a tenth of it.
const SMALL_WINDOW: u32 = 4_096;

/// The tools as a model with such a window is told of them; 0 stands for a window that is not known.
pub(super) fn to_window(mut tools: Vec<ToolSpec>, window: u32) -> Vec<ToolSpec> {
    let is_small = window != 0 && window < SMALL_WINDOW;
    for arguments in tools.iter_mut().filter_map(|tool| tool.function.parameters.get_mut("properties")?.as_object_mut())
    {
        if is_small {
            arguments.retain(|_, schema| schema.get(RARE_ARGUMENT) != Some(&Value::Bool(true)));
        }
        for schema in arguments.values_mut().filter_map(Value::as_object_mut) {
            schema.shift_remove(RARE_ARGUMENT);
        }
    }
    tools
}

/// The tools in the least room they take.
pub(super) fn least(tools: &[ToolSpec]) -> Vec<ToolSpec> {
    to_window(tools.to_vec(), 1)
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
        assert_eq!(to_window(tool(marked.clone()), 1_024), tool(few.clone()));
        assert_eq!(least(&tool(marked.clone())), tool(few));
        for window in [0, 4_096, 131_072] {
            assert_eq!(to_window(tool(marked.clone()), window), tool(all.clone()));
        }
        let odd = vec![ToolSpec::new("odd", "", json!({"properties": [1], "x-rare": true}))];
        assert_eq!(to_window(odd.clone(), 1_024), odd);
    }
}
