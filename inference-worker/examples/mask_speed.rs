//! What binding an answer costs: compiling a grammar, copying it for a request, and a mask for each token.
//!
//!     cargo run -p inference-worker --example mask_speed [MODEL DIRECTORY]

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use inference_worker::{constraint::CALLS_MAX, model_directory::Model, sample::Sampling};
use schemas::{
    ToolSpec,
    chat::{ResponseFormat, ToolChoice},
};
use serde_json::json;

#[expect(clippy::disallowed_methods, reason = "measures")]
fn now() -> Instant {
    Instant::now()
}

fn main() {
    let tiny = || Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
    let directory = std::env::args_os().nth(1).map_or_else(tiny, PathBuf::from);
    let model = Model::load(&directory).expect("the model loads");
    let since = now();
    let grammars = model.grammars().expect("masks can be computed");
    println!("{}: {} tokens, prepared in {:?}", model.name, model.decoder.architecture().vocabulary, since.elapsed());
    let text = json!({"type": "string"});
    let schema = json!({"type": "object", "properties": {"title": text, "tags": {"type": "array", "items": text},
        "lines": {"type": "integer", "minimum": 1, "maximum": 500}}, "required": ["title", "tags", "lines"]});
    let tools = [("search_code", "query"), ("read_file", "path")].map(|(name, key)| {
        ToolSpec::new(name, "", json!({"type": "object", "properties": {key: text}, "required": [key]}))
    });
    let format = ResponseFormat::JsonSchema { schema };
    let cases = [("json_object", Some(&ResponseFormat::JsonObject)), ("json_schema", Some(&format)), ("call", None)];
    for (name, format) in cases {
        let (tools, choice) =
            if format.is_some() { (&[][..], None) } else { (&tools[..], Some(&ToolChoice::Required)) };
        let constrain = || grammars.constrain(tools, choice, format, CALLS_MAX).expect("it compiles");
        let since = now();
        constrain();
        let compiled = since.elapsed();
        let since = now();
        constrain();
        let copied = since.elapsed();
        let mut masks = Vec::new();
        // Draws evenly among what is allowed, which visits more of a grammar than a model would.
        for seed in 0..20 {
            let mut constraint = constrain();
            let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
            for position in 0..100 {
                let since = now();
                constraint.prepare();
                masks.push(since.elapsed());
                let mut logits = vec![0.0; model.decoder.architecture().vocabulary];
                constraint.apply(&mut logits).expect("something can follow");
                let token = sampling.pick(&logits, position).expect("a token is allowed");
                if model.end_tokens.contains(&token) {
                    break;
                }
                constraint.push(token, None);
                if !constraint.binds() {
                    break;
                }
            }
        }
        masks.sort_unstable();
        let at = |part: usize| masks[(masks.len() * part / 100).min(masks.len() - 1)];
        let mean = masks.iter().sum::<Duration>() / u32::try_from(masks.len()).expect("few");
        let (count, p50, p99, max) = (masks.len(), at(50), at(99), at(100));
        println!("{name}: compiled in {compiled:?}, copied in {copied:?}");
        println!("    {count} masks: mean {mean:?}, p50 {p50:?}, p99 {p99:?}, max {max:?}");
    }
}
