//! The span of a request: from its arrival until its answer, or the last event of its stream, has gone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::http::{HeaderMap, Request};
use runtime::clock;
use runtime::spans::{self, Span, SpanKind};
use schemas::ExecutionId;
use schemas::trace::{Context, TRACEPARENT};
use schemas::wire::Nanos;

/// What other systems keep beside the context; it travels as it came.
const TRACESTATE: &str = "tracestate";

/// A request under way; recorded when the last who holds it lets it go.
pub(crate) struct Traced(Option<Begun>);

struct Begun {
    method: String,
    route: String,
    context: Context,
    parent: Option<[u8; 8]>,
    tracestate: Option<String>,
    from: Nanos,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    status: u16,
    exec: Option<ExecutionId>,
}

impl Traced {
    /// The request's place in the trace that it names, or at the beginning of one.
    pub(crate) fn begin(headers: &HeaderMap, method: &str, route: &str) -> Arc<Self> {
        let text = |name: &str| text(headers, name);
        let place = spans::place(text(TRACEPARENT).and_then(|came| Context::parse(&came)));
        let begun = place.map(|(context, parent)| Begun {
            method: method.to_owned(),
            route: route.to_owned(),
            context,
            parent,
            tracestate: text(TRACESTATE),
            from: clock::now(),
            known: Mutex::default(),
        });
        Arc::new(Self(begun))
    }

    /// That of a request which came by way of the router.
    pub(crate) fn of(request: &Request<Body>) -> Arc<Self> {
        request.extensions().get::<Arc<Self>>().cloned().unwrap_or_else(|| Arc::new(Self(None)))
    }

    /// What travels with everything that follows from the request.
    pub(crate) fn carrier(&self) -> BTreeMap<String, String> {
        let Some(begun) = &self.0 else { return BTreeMap::new() };
        let state = begun.tracestate.clone().map(|state| (TRACESTATE.to_owned(), state));
        [(TRACEPARENT.to_owned(), begun.context.traceparent())].into_iter().chain(state).collect()
    }

    pub(crate) fn answered(&self, status: u16) {
        self.know(|known| known.status = status);
    }

    pub(crate) fn began(&self, exec: ExecutionId) {
        self.know(|known| known.exec = Some(exec));
    }

    fn know(&self, learn: impl FnOnce(&mut Known)) {
        if let Some(begun) = &self.0 {
            learn(&mut begun.known.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let Some(begun) = self.0.take() else { return };
        let known = begun.known.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut attributes = vec![
            ("http.request.method", begun.method.clone().into()),
            ("http.route", begun.route.clone().into()),
            ("http.response.status_code", i64::from(known.status).into()),
        ];
        if let Some(exec) = known.exec {
            attributes.push(("vlinders.execution_id", exec.to_string().into()));
        }
        spans::record(Span {
            name: format!("{} {}", begun.method, begun.route).into(),
            kind: SpanKind::Server,
            context: begun.context,
            parent: begun.parent,
            from: begun.from,
            to: clock::now(),
            attributes,
            error: (known.status >= 500).then(|| format!("answered with {}", known.status)),
        });
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_that_came_goes_on() {
        let came = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let request = Request::builder().header(TRACEPARENT, came).header(TRACESTATE, "a=b").body(Body::empty());
        let carrier = Traced::begin(request.expect("a request").headers(), "GET", "/x").carrier();
        assert_eq!(carrier[TRACEPARENT], came, "nothing is exported, so what follows lies below the caller's own span");
        assert_eq!(carrier[TRACESTATE], "a=b");
        assert!(
            Traced::begin(&HeaderMap::new(), "GET", "/x").carrier().is_empty(),
            "nothing is exported, so there is no trace"
        );
    }
}
