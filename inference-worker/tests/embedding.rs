//! Embeddings against sentence-transformers (`reference/make_embeddings.py`): the real all-MiniLM-L6-v2, which
//! `deploy/install` puts in its place, and small random models for every pooling and type of weights.

use std::path::{Path, PathBuf};

use inference_worker::embed::Embedder;
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use serde_json::{Value, json};

fn reference(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(name)
}

/// Each text with its vector.
fn wanted(path: &Path) -> Vec<(String, Vec<f32>)> {
    let lines: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let text = |text: &Value| match text {
        Value::String(text) => text.clone(),
        piece => piece[0].as_str().unwrap().repeat(piece[1].as_u64().unwrap() as usize),
    };
    lines.iter().map(|line| (text(&line["text"]), serde_json::from_value(line["vector"].clone()).unwrap())).collect()
}

/// The real model; without it the tests that need it say so and pass.
#[expect(clippy::disallowed_methods, reason = "where deploy/install puts models stands in the environment")]
fn minilm() -> Option<Embedder> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    let directory = cache.join("vlinders/models/all-minilm-l6-v2");
    if !directory.exists() {
        println!("{} is missing: deploy/install installs it; skipped", directory.display());
        return None;
    }
    Some(Embedder::load(&directory).unwrap())
}

fn copy_of(name: &str) -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let (path, into) = entry.map(|entry| (entry.path(), to.join(entry.file_name()))).unwrap();
            if path.is_dir() {
                copy(&path, &into);
            } else {
                std::fs::copy(path, into).unwrap();
            }
        }
    }
    let directory = tempfile::tempdir().unwrap();
    copy(&reference(name), directory.path());
    directory
}

fn write(directory: &Path, file: &str, content: &Value) {
    std::fs::write(directory.join(file), content.to_string()).unwrap();
}

/// The worst cosine and the worst difference of a value.
fn compare(embedder: &Embedder, wanted: &[(String, Vec<f32>)]) -> (f64, f32) {
    let (mut cosine, mut difference) = (1.0_f64, 0.0_f32);
    for (text, theirs) in wanted {
        let ours = embedder.embed(text).unwrap().vector;
        assert_eq!(ours.len(), theirs.len());
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        cosine = cosine.min(dot(&ours, theirs) / (dot(&ours, &ours) * dot(theirs, theirs)).sqrt());
        difference = ours.iter().zip(theirs).fold(difference, |worst, (a, b)| worst.max((a - b).abs()));
    }
    println!("{}: worst cosine {cosine:.9}, worst difference {difference:e}", embedder.name);
    (cosine, difference)
}

#[test]
fn vectors_of_the_real_model_equal_those_of_sentence_transformers() {
    let Some(embedder) = minilm() else { return };
    assert_eq!((embedder.name.as_str(), embedder.window, embedder.dimensions), ("all-minilm-l6-v2", 256, 384));
    let wanted = wanted(&reference("all-minilm-l6-v2.json"));
    assert!(wanted.len() >= 40);
    let (cosine, difference) = compare(&embedder, &wanted);
    assert!(cosine >= 0.999_999 && difference <= 2e-6, "{cosine} {difference}");
}

#[test]
fn every_pooling_and_type_of_weights_equals_that_of_sentence_transformers() {
    // cls of unit length in f32; max in f16, in the older spelling with a window of 12; mean in bf16 with a prompt, a
    // window in the tokenizer's file and names that begin with "bert.".
    for (name, window) in [("bert-cls", 40), ("bert-max", 12), ("bert-mean", 16)] {
        let embedder = Embedder::load(&reference(name)).unwrap();
        assert_eq!((embedder.window, embedder.dimensions), (window, 24), "{name}");
        let (cosine, difference) = compare(&embedder, &wanted(&reference(name).join("reference.json")));
        assert!(cosine >= 0.999_999 && difference <= 1e-5, "{name}: {cosine} {difference}");
    }
}

#[test]
fn without_a_word_about_it_the_mean_of_unit_length_is_taken() {
    let directory = copy_of("bert-cls");
    std::fs::remove_file(directory.path().join("modules.json")).unwrap();
    let plain = Embedder::load(directory.path()).unwrap().embed("hello world").unwrap().vector;
    write(directory.path(), "1_Pooling/config.json", &json!({"pooling_mode": "mean"}));
    std::fs::copy(reference("bert-cls/modules.json"), directory.path().join("modules.json")).unwrap();
    let asked = Embedder::load(directory.path()).unwrap().embed("hello world").unwrap().vector;
    assert_eq!(plain, asked);
    assert!((asked.iter().map(|value| value * value).sum::<f32>() - 1.0).abs() < 1e-6);
}

#[test]
fn a_text_beyond_the_window_is_cut_with_its_marks_kept_and_the_answer_says_so() {
    let embedder = Embedder::load(&reference("bert-max")).unwrap();
    let whole = embedder.embed("a b c d e f g h i j").unwrap();
    let longer = embedder.embed("a b c d e f g h i j k l m n").unwrap();
    assert_eq!((whole.tokens, whole.cut, longer.tokens, longer.cut), (12, false, 12, true));
    assert_eq!(whole.vector, longer.vector, "what is read is the same");
}

#[test]
fn a_text_has_the_same_vector_in_any_company() {
    let embedder = minilm().unwrap_or_else(|| Embedder::load(&reference("bert-cls")).unwrap());
    let texts: Vec<String> =
        (0..24).map(|count| format!("text number {count}: {}", "and more ".repeat(count * 3))).collect();
    let alone: Vec<Vec<f32>> = texts.iter().map(|text| embedder.embed(text).unwrap().vector).collect();
    for threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let together: Vec<Vec<f32>> =
            pool.install(|| texts.par_iter().map(|text| embedder.embed(text).unwrap().vector).collect());
        assert_eq!(together, alone, "with {threads} threads");
    }
}

#[test]
fn what_is_not_known_is_refused_with_the_file_and_the_reason() {
    type Change = (&'static str, Value, &'static [&'static str]);
    let step = |kind: &str, path: &str| json!({"type": format!("sentence_transformers.models.{kind}"), "path": path});
    let config: Value = serde_json::from_slice(&std::fs::read(reference("bert-cls/config.json")).unwrap()).unwrap();
    let changed = |key: &str, value: Value| {
        let mut config = config.clone();
        config[key] = value;
        config
    };
    let pooling = "1_Pooling/config.json";
    let cases: Vec<Change> = vec![
        (pooling, json!({"pooling_mode": "lasttoken"}), &["1_Pooling", "lasttoken", "cls, max, mean"]),
        (pooling, json!({"pooling_mode": ["cls", "mean"]}), &["1_Pooling", "cls with mean"]),
        (pooling, json!({"pooling_mode_mean_sqrt_len_tokens": true}), &["1_Pooling", "mean_sqrt_len_tokens"]),
        (
            "modules.json",
            json!([step("Transformer", ""), step("Pooling", "1_Pooling"), step("Dense", "2_Dense")]),
            &["modules.json", "Transformer, Pooling, Dense"],
        ),
        (
            "modules.json",
            json!([step("Transformer", "../elsewhere"), step("Pooling", "1_Pooling")]),
            &["modules.json", "../elsewhere"],
        ),
        ("modules.json", json!({"steps": []}), &["modules.json", "list of steps"]),
        (
            "config_sentence_transformers.json",
            json!({"default_prompt_name": "query", "prompts": {}}),
            &["config_sentence_transformers.json", "\"query\""],
        ),
        ("tokenizer_config.json", json!({"model_max_length": 2}), &["config.json", "window of 2 tokens", "2 marks"]),
        ("tokenizer_config.json", json!({"model_max_length": "long"}), &["tokenizer_config.json", "\"long\""]),
        ("config.json", changed("model_type", json!("roberta")), &["config.json", "\"roberta\"", "bert"]),
        ("config.json", changed("hidden_act", json!("mish")), &["config.json", "mish"]),
        ("config.json", changed("num_attention_heads", json!(0)), &["config.json", "num_attention_heads"]),
        ("config.json", changed("num_attention_heads", json!(5)), &["config.json", "5 attention heads"]),
        ("config.json", changed("num_hidden_layers", json!(9)), &["model.safetensors", "layer.2.", "missing"]),
        ("config.json", changed("intermediate_size", json!(41)), &["model.safetensors", "shape", "41"]),
        ("config.json", changed("vocab_size", json!(30)), &["tokenizer.json", "30 tokens"]),
    ];
    for (file, content, said) in cases {
        let directory = copy_of("bert-cls");
        write(directory.path(), file, &content);
        let text = Embedder::load(directory.path()).map(drop).expect_err(file).to_string();
        assert!(said.iter().all(|part| text.contains(part)), "{file} {content}: {text}");
    }
}
