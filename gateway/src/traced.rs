//! The span of a request: from its arrival until its answer, or the last event of its stream, has gone. What is logged
//! meanwhile says so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::http::{HeaderMap, Request};
use runtime::spans::{self, Span, SpanKind};
use runtime::{clock, lines};
use schemas::ExecutionId;
use schemas::trace::{Context, TRACEPARENT};
use schemas::wire::Nanos;
use tracing::Instrument as _;

/// What other systems keep beside the context; it travels as it came.
const TRACESTATE: &str = "tracestate";

/// A request under way; recorded when the last who holds it lets it go.
pub(crate) struct Traced {
    method: String,
    route: String,
    from: Nanos,
    /// None in no trace.
    place: Option<Place>,
    known: Mutex<Known>,
    /// What is done within it is logged under the request's trace and execution.
    lines: tracing::Span,
}

/// Where it stands in a trace.
struct Place {
    context: Context,
    parent: Option<[u8; 8]>,
    tracestate: Option<String>,
}

#[derive(Default)]
struct Known {
    status: Option<u16>,
    exec: Option<ExecutionId>,
}

impl Traced {
    /// The request's place in the trace that it names, or at the beginning of one.
    pub(crate) fn begin(headers: &HeaderMap, method: &str, route: &str) -> Arc<Self> {
        let text = |name: &str| text(headers, name);
        let place = spans::place(text(TRACEPARENT).and_then(|came| Context::parse(&came)));
        let place = place.map(|(context, parent)| Place { context, parent, tracestate: text(TRACESTATE) });
        Arc::new(Self {
            method: method.to_owned(),
            route: route.to_owned(),
            from: clock::now(),
            lines: lines::within(place.as_ref().map(|place| place.context), None),
            place,
            known: Mutex::default(),
        })
    }

    /// That of a request which came by way of the router.
    pub(crate) fn of(request: &Request<Body>) -> Arc<Self> {
        let begun = || Self::begin(request.headers(), request.method().as_str(), request.uri().path());
        request.extensions().get::<Arc<Self>>().cloned().unwrap_or_else(begun)
    }

    /// Does this as a part of the request.
    pub(crate) fn within<T>(&self, work: impl Future<Output = T>) -> impl Future<Output = T> {
        work.instrument(self.lines.clone())
    }

    /// What travels with everything that follows from the request.
    pub(crate) fn carrier(&self) -> BTreeMap<String, String> {
        let Some(place) = &self.place else { return BTreeMap::new() };
        let state = place.tracestate.clone().map(|state| (TRACESTATE.to_owned(), state));
        [(TRACEPARENT.to_owned(), place.context.traceparent())].into_iter().chain(state).collect()
    }

    pub(crate) fn answered(&self, status: u16) {
        self.know(|known| known.status = Some(status));
    }

    pub(crate) fn began(&self, exec: ExecutionId) {
        // Of several that one request begins the first stands for all.
        if self.know(|known| known.exec.replace(exec)).is_none() {
            lines::execution(&self.lines, exec);
        }
    }

    fn know<T>(&self, learn: impl FnOnce(&mut Known) -> T) -> T {
        learn(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let known = std::mem::take(self.known.get_mut().unwrap_or_else(PoisonError::into_inner));
        let (to, status) = (clock::now(), known.status);
        let (method, route, took_ms) = (self.method.as_str(), self.route.as_str(), (to - self.from) / 1_000_000);
        self.lines.in_scope(|| tracing::debug!(method, route, status, took_ms, "a request has ended"));
        let Some(place) = self.place.take() else { return };
        let mut attributes =
            vec![("http.request.method", method.to_owned().into()), ("http.route", route.to_owned().into())];
        attributes.extend(status.map(|status| ("http.response.status_code", i64::from(status).into())));
        if let Some(exec) = known.exec {
            attributes.push(("vlinders.execution_id", exec.to_string().into()));
        }
        spans::record(Span {
            name: format!("{method} {route}").into(),
            kind: SpanKind::Server,
            context: place.context,
            parent: place.parent,
            from: self.from,
            to,
            attributes,
            error: status.filter(|status| *status >= 500).map(|status| format!("answered with {status}")),
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
