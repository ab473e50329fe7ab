//! Bounds on JSON schemas that come from outside: what they may cost before anything compiles them.

use serde_json::Value;

/// Bytes of a schema, written as JSON.
pub const BYTES_MAX: usize = 64 << 10;
/// How deep objects and lists may nest.
pub const DEPTH_MAX: usize = 32;
/// Objects and lists in a schema.
pub const NODES_MAX: usize = 2_000;
/// Ways in which the alternatives of one `allOf` can be combined.
pub const COMBINATIONS_MAX: u64 = 1_000;
/// Repetitions that a schema may count: `minItems`, `maxLength` and their like.
pub const COUNT_MAX: u64 = 10_000;

/// Keywords that count something.
const COUNTS: [&str; 6] = ["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"];

/// Checks a schema against the bounds.
///
/// # Errors
/// The text says which bound, where, and how much there is.
pub fn check(schema: &Value) -> Result<(), String> {
    if !(schema.is_object() || schema.is_boolean()) {
        return Err(format!("the schema must be an object, not {schema}"));
    }
    let mut left = Left { nodes: NODES_MAX };
    left.visit(schema, "#", 0)?;
    let bytes = schema.to_string().len();
    if bytes > BYTES_MAX {
        return Err(format!("the schema has {bytes} bytes, at most {BYTES_MAX} are taken"));
    }
    Ok(())
}

struct Left {
    nodes: usize,
}

impl Left {
    fn visit(&mut self, value: &Value, at: &str, depth: usize) -> Result<(), String> {
        if depth > DEPTH_MAX {
            return Err(format!("the schema nests more than {DEPTH_MAX} levels deep, at {at}"));
        }
        if !(value.is_object() || value.is_array()) {
            return Ok(());
        }
        self.nodes = self
            .nodes
            .checked_sub(1)
            .ok_or_else(|| format!("the schema has more than {NODES_MAX} objects and lists, at {at}"))?;
        match value {
            Value::Array(items) => {
                items.iter().enumerate().try_for_each(|(i, item)| self.visit(item, &format!("{at}/{i}"), depth + 1))
            }
            Value::Object(fields) => fields.iter().try_for_each(|(name, field)| {
                let at = format!("{at}/{name}");
                if let Some(count) = field.as_f64().filter(|_| COUNTS.contains(&name.as_str()))
                    && count > COUNT_MAX as f64
                {
                    return Err(format!("{at} is {field}, at most {COUNT_MAX} is taken"));
                }
                if name == "allOf" && combinations(field) > COMBINATIONS_MAX {
                    return Err(format!(
                        "the alternatives under {at} combine in more than {COMBINATIONS_MAX} ways; write them out"
                    ));
                }
                self.visit(field, &at, depth + 1)
            }),
            _ => Ok(()),
        }
    }
}

/// In how many ways a schema can be met, by its alternatives alone.
fn combinations(value: &Value) -> u64 {
    match value {
        Value::Array(items) => items.iter().map(combinations).fold(1, u64::saturating_mul),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, field)| match (name.as_str(), field) {
                ("anyOf" | "oneOf", Value::Array(options)) => {
                    options.iter().map(combinations).fold(0, u64::saturating_add).max(1)
                }
                ("allOf", field) => combinations(field),
                _ => 1,
            })
            .fold(1, u64::saturating_mul),
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refused(schema: &Value) -> String {
        check(schema).expect_err("refused")
    }

    #[test]
    fn a_usual_schema_passes() {
        let schema = json!({"type": "object", "properties": {"a": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/b"}]}},
            "$defs": {"b": {"type": "array", "items": {"$ref": "#/$defs/b"}, "maxItems": 10_000}}});
        assert_eq!(check(&schema), Ok(()));
        assert_eq!(check(&json!(true)), Ok(()));
    }

    #[test]
    fn each_bound_is_named_with_its_place() {
        assert!(refused(&json!([])).contains("must be an object"));
        let deep = (0..40).fold(json!({}), |inner, _| json!({"items": inner}));
        assert!(refused(&deep).contains("32 levels deep, at #/items/items"));
        let many = Value::Object((0..3_000).map(|i| (i.to_string(), json!({}))).collect());
        assert!(refused(&json!({"properties": many})).contains("2000 objects and lists"));
        assert!(refused(&json!({"enum": vec!["x".repeat(1_000); 70]})).contains("bytes, at most 65536"));
        assert!(refused(&json!({"items": {"minLength": 1e12}})).contains("#/items/minLength is 1000000000000.0"));
        let options = json!({"anyOf": [{}, {}, {}, {}, {}, {}, {}, {}, {}, {}]});
        assert!(refused(&json!({"allOf": vec![options; 4]})).contains("#/allOf combine in more than 1000 ways"));
    }
}
