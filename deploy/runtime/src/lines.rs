//! Log lines that say to which trace, to which span of it and to which execution they belong: every line that is written
//! while what stands [`within`] is worked on.
//!
//! People read the three behind the line's own fields. In JSON they stand beside `level` and `target`, by the names
//! `trace_id`, `span_id` and `execution_id`, where whoever collects logs looks for them.

use std::fmt;

use schemas::ExecutionId;
use schemas::trace::Context;
use tracing::field::{Empty, display};
use tracing::{Event, Span, Subscriber};
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// The target of the spans; no filter of lines may leave them out.
pub(crate) const TARGET: &str = "vlinders::within";

/// What is done within this span is logged under the trace, the span and the execution, as far as they are known: what
/// becomes known later is added by [`place`] and [`execution`].
#[must_use]
pub fn within(context: Option<Context>, exec: Option<ExecutionId>) -> Span {
    // Of the highest level, so that a log of warnings says as much of each as any other.
    let span = tracing::error_span!(target: TARGET, "within", trace_id = Empty, span_id = Empty, execution_id = Empty);
    if let Some(context) = context {
        place(&span, context);
    }
    if let Some(exec) = exec {
        execution(&span, exec);
    }
    span
}

/// Lines within the span belong to this place of a trace.
pub fn place(span: &Span, context: Context) {
    if !span.is_disabled() {
        span.record("trace_id", display(hex::encode(context.trace)));
        span.record("span_id", display(hex::encode(context.span)));
    }
}

/// Lines within the span are about this execution.
pub fn execution(span: &Span, exec: ExecutionId) {
    span.record("execution_id", display(exec));
}

/// One JSON object a line.
pub(crate) struct Json;

impl<S: Subscriber + for<'a> LookupSpan<'a>> FormatEvent<S, JsonFields> for Json {
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        writer.write_str(r#"{"timestamp":""#)?;
        SystemTime.format_time(&mut writer)?;
        let (level, target) = (event.metadata().level(), event.metadata().target());
        write!(writer, r#"","level":"{level}","fields":"#)?;
        ctx.field_format().format_fields(writer.by_ref(), event)?;
        write!(writer, r#","target":{target:?}"#)?;
        let ours = ctx.event_scope().into_iter().flatten().find(|span| span.metadata().target() == TARGET);
        if let Some(span) = ours
            && let Some(known) = span.extensions().get::<FormattedFields<JsonFields>>()
            // What is known was written as an object; here it is a part of one.
            && let Some(known) = known.fields.strip_prefix('{').and_then(|known| known.strip_suffix('}'))
            && !known.is_empty()
        {
            write!(writer, ",{known}")?;
        }
        writeln!(writer, "}}")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};
    use tracing_subscriber::fmt::MakeWriter;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::telemetry::{Config, Format, lines};

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("nobody panics").write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Written {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    /// What is written of `work`, where lines of this level and above are asked for.
    fn written(format: Format, log: &str, work: impl FnOnce()) -> String {
        let (config, written) = (Config { format, log: log.to_owned(), ..Config::default() }, Written::default());
        let subscriber =
            tracing_subscriber::registry().with(lines(&config, written.clone(), false).expect("the filter is one"));
        tracing::subscriber::with_default(subscriber, work);
        let bytes = written.0.lock().expect("nobody panics").clone();
        String::from_utf8(bytes).expect("text")
    }

    fn exec() -> ExecutionId {
        "0192f0c1-7a3b-7c4d-8e5f-001122334455".parse().expect("canonical")
    }

    fn work() {
        let context = Context::parse(PARENT);
        tracing::warn!(odd = true, "outside");
        within(context, Some(exec())).in_scope(|| tracing::warn!(why = "a \"reason\"", times = 3, "inside"));
        let later = within(None, None);
        later.in_scope(|| tracing::warn!("nothing is known"));
        execution(&later, exec());
        place(&later, context.expect("a context"));
        later.in_scope(|| tracing::debug_span!("another's").in_scope(|| tracing::warn!("later")));
    }

    #[test]
    fn json_lines_carry_the_ids_beside_their_level() {
        let text = written(Format::Json, "warn", work);
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
        let ids = ["trace_id", "span_id", "execution_id"];
        let of = |line: &Value| ids.map(|id| line[id].as_str().map(str::to_owned));
        let known =
            ["4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", &exec().to_string()].map(|id| Some(id.to_owned()));
        let said: Vec<_> = lines.iter().map(|line| line["fields"]["message"].as_str().expect("a message")).collect();
        assert_eq!(said, ["outside", "inside", "nothing is known", "later"]);
        assert_eq!(
            lines.iter().map(of).collect::<Vec<_>>(),
            [[const { None }; 3], known.clone(), [const { None }; 3], known]
        );
        assert_eq!(lines[1]["fields"], json!({"message": "inside", "why": "a \"reason\"", "times": 3}));
        assert_eq!((&lines[1]["level"], &lines[1]["target"]), (&json!("WARN"), &json!("runtime::lines::tests")));
    }

    #[test]
    fn lines_for_people_carry_the_ids_behind_their_fields() {
        let text = written(Format::Pretty, "runtime=warn", work);
        let lines: Vec<&str> = text.lines().collect();
        let ids = format!("trace_id=4bf92f3577b34da6a3ce929d0e0e4736 span_id=00f067aa0ba902b7 execution_id={}", exec());
        let carries = lines.iter().map(|line| line.contains(&ids)).collect::<Vec<_>>();
        assert_eq!(carries[..2], [false, true], "{text}");
        assert!(lines[1].contains("inside") && lines[1].contains("times=3"), "{text}");
        let later = lines[3];
        assert!(ids.split(' ').all(|id| later.contains(id)) && !lines[2].contains("_id="), "{text}");
    }
}
