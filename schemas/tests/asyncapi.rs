//! The document of the bus: it is the one that this code makes, a validator that is not ours finds nothing wrong with it,
//! and the messages as they are on the wire fit its schemas.

use std::path::Path;

use enumset::EnumSet;
use roas_asyncapi::v3_0::Document;
use roas_asyncapi::validation::Validate;
use serde_json::{Value, json};

fn directory() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_document_that_is_checked_in_is_the_one_that_follows_from_the_types() {
    let kept = std::fs::read_to_string(directory().join("asyncapi.json")).expect("schemas/asyncapi.json");
    let made = format!("{}\n", serde_json::to_string_pretty(&schemas::asyncapi::document()).expect("JSON"));
    let differs = kept.lines().zip(made.lines()).position(|(kept, made)| kept != made);
    assert!(kept == made, "line {differs:?} differs: run `cargo run -p schemas --example asyncapi` and read the diff");
}

#[test]
fn a_validator_of_others_finds_nothing_wrong_with_it() {
    let document: Document = serde_json::from_value(schemas::asyncapi::document()).expect("an AsyncAPI document");
    document.validate(EnumSet::empty()).expect("it is well formed");
    assert_eq!(document.channels.len(), schemas::asyncapi::document()["channels"].as_object().expect("channels").len());
}

/// Golden samples by the beginning of their names, and what they are messages of.
const SAMPLES: [(&str, &str); 21] = [
    ("fact.", "Fact"),
    ("decision.", "Decision"),
    ("token.", "Frame"),
    ("job.inference.", "InferenceJob"),
    ("job.tool.", "ToolJob"),
    ("job.analysis.", "AnalysisJob"),
    ("presence.holds.", "WorkerAnswer"),
    ("rpc.complete.", "SubmissionQuestion"),
    ("rpc.completion.", "SubmissionAnswer"),
    ("rpc.embed.", "EmbedQuestion"),
    ("rpc.embeddings.", "EmbedAnswer"),
    ("rpc.models.change.", "ChangeModelsQuestion"),
    ("rpc.models.changed.", "ChangeModelsAnswer"),
    ("rpc.fork.", "ForkQuestion"),
    ("rpc.forked.", "ForkAnswer"),
    ("rpc.search.", "SearchQuestion"),
    ("rpc.found.", "SearchAnswer"),
    ("rpc.code.", "CodeQuestion"),
    ("rpc.find_workspace.", "WorkspaceQuestion"),
    ("rpc.workspace.", "WorkspaceAnswer"),
    ("rpc.analyse.", "AnalyseQuestion"),
];

#[test]
fn messages_as_they_are_on_the_wire_fit_its_schemas() {
    let document = schemas::asyncapi::document();
    let mut names: Vec<String> = std::fs::read_dir(directory().join("golden"))
        .expect("golden samples")
        .map(|file| file.expect("a file").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    for (beginning, message) in SAMPLES {
        let payload = &document["components"]["messages"][message]["payload"];
        assert!(payload.is_object(), "there is no message {message}");
        let schema = json!({"allOf": [payload], "components": document["components"]});
        let validator = jsonschema::draft7::new(&schema).expect("a schema");
        let mut found = 0;
        for name in names.iter().filter(|name| name.starts_with(beginning)) {
            let text = std::fs::read_to_string(directory().join("golden").join(name)).expect("a sample");
            let (_, readable) = text.split_once('\n').expect("hex, then JSON");
            let sample: Value = serde_json::from_str(readable).expect("JSON");
            // Of an answer the sample may be what stands in the reply.
            let answer = json!({"ok": sample});
            let wrong: Vec<String> = validator.iter_errors(&sample).map(|error| error.to_string()).collect();
            assert!(wrong.is_empty() || validator.is_valid(&answer), "{name} is no {message}: {wrong:?}");
            found += 1;
        }
        assert!(found > 0, "no sample begins with {beginning}");
    }
}
