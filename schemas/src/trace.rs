//! W3C trace context as it travels with facts and jobs, so that all hops of a request are one trace. Pure.
//!
//! Spans of an execution are named by hashes of its id: whoever gives a job away can say which span it belongs to long
//! before that span is recorded, and a successor says the same.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::ids::ExecutionId;

/// The header, and the key in facts and jobs.
pub const TRACEPARENT: &str = "traceparent";

/// Where a span stands: its trace, itself, and whether it is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The trace.
    pub trace: [u8; 16],
    /// The span.
    pub span: [u8; 8],
    /// Whether anybody wants it.
    pub sampled: bool,
}

impl Context {
    /// Reads what came with a message; none when there is nothing, or nothing that is one.
    #[must_use]
    pub fn read(carrier: &BTreeMap<String, String>) -> Option<Self> {
        Self::parse(carrier.get(TRACEPARENT)?)
    }

    /// Reads `VERSION-TRACE-SPAN-FLAGS`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().split('-');
        let [version, trace, span, flags] = std::array::from_fn(|_| parts.next().unwrap_or_default());
        if version.len() != 2 || version == "ff" || (version == "00" && parts.next().is_some()) {
            return None;
        }
        let (mut this, mut flag) = (Self { trace: [0; 16], span: [0; 8], sampled: false }, [0]);
        hex::decode_to_slice(trace, &mut this.trace).ok()?;
        hex::decode_to_slice(span, &mut this.span).ok()?;
        hex::decode_to_slice(flags, &mut flag).ok()?;
        this.sampled = flag[0] & 1 == 1;
        (this.trace != [0; 16] && this.span != [0; 8]).then_some(this)
    }

    /// The text that travels.
    #[must_use]
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-{:02x}", hex::encode(self.trace), hex::encode(self.span), u8::from(self.sampled))
    }

    /// Another span of the same trace.
    #[must_use]
    pub const fn with_span(self, span: [u8; 8]) -> Self {
        Self { span, ..self }
    }
}

/// The id of an execution's span of that name.
#[must_use]
pub fn span_of(exec: ExecutionId, name: &str) -> [u8; 8] {
    let digest = Sha256::digest(format!("{exec}/{name}"));
    let mut id = [0; 8];
    id.copy_from_slice(&digest[..8]);
    id
}

/// What travels with work below an execution's span of that name: the same trace, and that span. What is no context stays
/// as it is.
#[must_use]
pub fn below(carrier: &BTreeMap<String, String>, exec: ExecutionId, name: &str) -> BTreeMap<String, String> {
    let mut carrier = carrier.clone();
    if let Some(context) = Context::read(&carrier) {
        carrier.insert(TRACEPARENT.to_owned(), context.with_span(span_of(exec, name)).traceparent());
    }
    carrier
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_context_survives_and_what_is_none_is_none() {
        let context = Context::parse(TEXT).expect("a context");
        assert!(context.sampled);
        assert_eq!(context.traceparent(), TEXT);
        for wrong in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e47-00f067aa0ba902b7-01",
        ] {
            assert_eq!(Context::parse(wrong), None, "{wrong}");
        }
        // A later version may say more behind what is known.
        assert!(Context::parse("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-more").is_some());
    }

    #[test]
    fn work_below_an_execution_names_its_span_whoever_says_so() {
        let exec: ExecutionId = "0192f0c1-0000-7000-8000-000000000007".parse().expect("an id");
        let carrier = BTreeMap::from([(TRACEPARENT.to_owned(), TEXT.to_owned())]);
        let below_it = Context::read(&below(&carrier, exec, "run_agent")).expect("a context");
        assert_eq!(below_it.trace, Context::parse(TEXT).expect("a context").trace);
        assert_eq!(below_it.span, span_of(exec, "run_agent"));
        assert_ne!(below_it.span, span_of(exec, "tool_calling_loop"));
        assert_eq!(below(&BTreeMap::new(), exec, "run_agent"), BTreeMap::new());
    }
}
