//! Spans, recorded when their work is done: what is measured stands beside the work, which carries no telemetry.
//!
//! A span may be told to others before it is recorded, also by another process than the one that records it: so its id
//! is chosen by us and not by the exporter.

use std::borrow::Cow;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
    Tracer as _,
};
use opentelemetry::{Context as Parent, KeyValue, global};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SdkTracerProvider};
use schemas::trace::Context;
use schemas::wire::Nanos;

pub use opentelemetry::Value;
pub use opentelemetry::trace::SpanKind;

use crate::clock;

/// The scope of all spans.
const SCOPE: &str = "vlinders";

static EXPORTS: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// The ids of the span that is being recorded.
    static NEXT: Cell<Option<([u8; 16], [u8; 8])>> = const { Cell::new(None) };
}

/// Some work that was done.
pub struct Span {
    /// What it is called.
    pub name: Cow<'static, str>,
    /// Which side of a hop it is.
    pub kind: SpanKind,
    /// Its trace and its own id.
    pub context: Context,
    /// The span that it is a part of.
    pub parent: Option<[u8; 8]>,
    /// When it began, nanoseconds since the epoch.
    pub from: Nanos,
    /// When it ended.
    pub to: Nanos,
    /// What is known of it, by the names of OpenTelemetry's conventions where there are any.
    pub attributes: Vec<(&'static str, Value)>,
    /// What went wrong.
    pub error: Option<String>,
}

/// Whether spans are exported at all.
#[must_use]
pub fn exports() -> bool {
    EXPORTS.load(Ordering::Relaxed)
}

/// A place for a new span, and the span above it: in the trace that came with a request, or at the beginning of one. Where
/// nothing is exported, what came goes on as it is, so that no trace has a hole; none when nothing came, either.
#[must_use]
pub fn place(came: Option<Context>) -> Option<(Context, Option<[u8; 8]>)> {
    match came {
        Some(context) if exports() => Some((context.with_span(random()), Some(context.span))),
        Some(context) => Some((context, None)),
        None if exports() => Some((Context { trace: random(), span: random(), sampled: true }, None)),
        None => None,
    }
}

/// Records a span, if spans are exported and anybody wants this trace.
pub fn record(span: Span) {
    if !exports() || !span.context.sampled {
        return;
    }
    let tracer = global::tracer(SCOPE);
    let parent = span.parent.map_or_else(Parent::new, |parent| {
        let (trace, parent) = (TraceId::from_bytes(span.context.trace), SpanId::from_bytes(parent));
        let context = SpanContext::new(trace, parent, TraceFlags::SAMPLED, true, TraceState::default());
        Parent::new().with_remote_span_context(context)
    });
    let attributes = span.attributes.into_iter().map(|(key, value)| KeyValue::new(key, value)).collect::<Vec<_>>();
    let builder = SpanBuilder::from_name(span.name).with_kind(span.kind).with_start_time(time(span.from));
    NEXT.set(Some((span.context.trace, span.context.span)));
    let mut recorded = tracer.build_with_context(builder.with_attributes(attributes), &parent);
    NEXT.set(None);
    if let Some(error) = span.error {
        recorded.set_status(Status::error(error));
    }
    recorded.end_with_timestamp(time(span.to.max(span.from)));
}

/// From now on spans go to this provider.
pub(crate) fn export_to(provider: &SdkTracerProvider) {
    global::set_tracer_provider(provider.clone());
    EXPORTS.store(true, Ordering::Relaxed);
}

fn time(at: Nanos) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::try_from(at).unwrap_or(0))
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let text = clock::random_hex();
    // 32 digits are 16 bytes.
    let _ = hex::decode_to_slice(&text[..2 * N], &mut bytes);
    bytes
}

/// Gives a span the ids that were chosen for it.
#[derive(Debug, Default)]
pub(crate) struct Chosen(RandomIdGenerator);

impl IdGenerator for Chosen {
    fn new_trace_id(&self) -> TraceId {
        NEXT.get().map_or_else(|| self.0.new_trace_id(), |(trace, _)| TraceId::from_bytes(trace))
    }

    fn new_span_id(&self) -> SpanId {
        NEXT.get().map_or_else(|| self.0.new_span_id(), |(_, span)| SpanId::from_bytes(span))
    }
}
