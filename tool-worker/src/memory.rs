//! The tools `remember` and `recall`: facts of a user, and of a workspace where the call has one, kept and found by the
//! analysis workers. Whose memory it is follows from the request and not from the arguments, which a model writes.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use runtime::bus::Bus;
use schemas::fact::Sandbox as Report;
use schemas::memory::{Ask, FACT_BYTES_MAX, Scope, Told};
use schemas::subject;
use serde_json::{Value, json};

use crate::code::{self, TIER, seldom};
use crate::failure::Failure;
use crate::registry::{Approval, Behalf, Handler, Means, Order, SideEffect, Tool};
use crate::workspace::Roots;

/// Wall time of one call: a text is embedded.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Result text of a recall.
const RESULT_BYTES_MAX: usize = 16 * 1024;
/// Tokens of what is recalled unless the call says otherwise.
const TOKENS_DEFAULT: u64 = 500;

struct Memory {
    bus: Bus,
    roots: Roots,
    keeps: bool,
}

/// Both tools.
pub(crate) fn tools(bus: &Bus, roots: &Roots) -> [Tool; 2] {
    let tool = |keeps: bool, name: &str, description: &str, properties: Value, required: &str| {
        seldom(Tool {
            name: name.to_owned(),
            description: description.to_owned(),
            parameters: json!({"type": "object", "properties": properties, "required": [required], "additionalProperties": false}),
            result: None,
            effect: if keeps { SideEffect::ActsElsewhere } else { SideEffect::ReadsWorkspace },
            approval: Approval::AgentType,
            permissions: [].into(),
            timeout: TIMEOUT,
            result_bytes_max: RESULT_BYTES_MAX,
            unavailable: None,
            means: Means::Handler(Arc::new(Memory { bus: bus.clone(), roots: roots.clone(), keeps })),
        })
    };
    let fact = json!({"fact": {
        "type": "string", "minLength": 1, "maxLength": FACT_BYTES_MAX, "description": "one fact, in words that need no context",
    }});
    let query = json!({
        "query": {"type": "string", "minLength": 1, "maxLength": FACT_BYTES_MAX, "description": "what it should be about"},
        "max_tokens": {"type": "integer", "minimum": 16, "maximum": 4_000, "description": "how much to recall, 500 unless given"},
    });
    [
        tool(true, "remember", "Keep a fact that later tasks should know.", fact, "fact"),
        tool(false, "recall", "Find facts that earlier tasks kept.", query, "query"),
    ]
}

impl Handler for Memory {
    // It changes by itself.
    fn version(&self) -> Option<String> {
        None
    }

    fn carry_out<'a>(&'a self, order: Order, report: &'a mut Report) -> BoxFuture<'a, Result<String, Failure>> {
        Box::pin(async move {
            TIER.clone_into(&mut report.tier);
            let text = |name: &str| order.arguments.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            let scope = self.scope(&order.behalf)?;
            let question = match self.keeps {
                true => Ask::Remember { scope, text: text("fact"), source: order.behalf.exec },
                false => {
                    let tokens = order.arguments.get("max_tokens").and_then(Value::as_u64).unwrap_or(TOKENS_DEFAULT);
                    Ask::Recall { scope, query: text("query"), tokens_max: u32::try_from(tokens).unwrap_or(u32::MAX) }
                }
            };
            let told = code::ask(&self.bus, subject::RPC_MEMORY, &question).await?;
            Ok(words(&told))
        })
    }
}

impl Memory {
    /// The user and, where the call names a workspace, that.
    fn scope(&self, behalf: &Behalf) -> Result<Scope, Failure> {
        let workspace = match behalf.workspace.as_deref() {
            None => None,
            Some(name) => Some(self.roots.find(Some(name)).map_err(Failure::from)?.path().display().to_string()),
        };
        Ok(Scope { user_id: behalf.user_id.clone(), workspace })
    }
}

fn words(told: &Told) -> String {
    match told {
        Told::Remembered { renewed: false, .. } => "remembered".to_owned(),
        Told::Remembered { renewed: true, .. } => "remembered (it was known already)".to_owned(),
        Told::Facts(facts) if facts.is_empty() => "nothing is known about that".to_owned(),
        Told::Facts(facts) => facts.iter().map(|fact| format!("- {}", fact.text)).collect::<Vec<_>>().join("\n"),
        Told::Forgotten(forgotten) => format!("{forgotten} forgotten"),
    }
}
