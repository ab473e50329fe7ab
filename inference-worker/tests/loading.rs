//! A model that cannot be used is refused with the file and the reason.

use std::path::{Path, PathBuf};

use inference_worker::{architecture::Architecture, model::Decoder, weights::SafetensorsFiles};

fn copy_of(name: &str) -> tempfile::TempDir {
    let from = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(name);
    let directory = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
    }
    directory
}

fn refusal(directory: &Path) -> String {
    let load = || {
        let architecture = Architecture::read(&directory.join("config.json"))?;
        Decoder::load(architecture, &SafetensorsFiles::open(directory)?)
    };
    load().expect_err("the model is refused").to_string()
}

fn replace(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from} is in {}", path.display());
    std::fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn a_missing_shard_is_named() {
    let directory = copy_of("llama");
    std::fs::remove_file(directory.path().join("model-00002-of-00002.safetensors")).unwrap();
    assert!(refusal(directory.path()).contains("model-00002-of-00002.safetensors"));
}

#[test]
fn a_file_truncated_anywhere_is_refused() {
    let directory = copy_of("qwen3");
    let path = directory.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    for length in [0, 7, 8, 100, 5_000, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let text = refusal(directory.path());
        assert!(text.contains("model.safetensors") && text.contains("truncated"), "{length}: {text}");
    }
}

#[test]
fn an_unknown_architecture_is_named() {
    let directory = copy_of("qwen3");
    replace(&directory.path().join("config.json"), "Qwen3ForCausalLM", "GPT2LMHeadModel");
    let text = refusal(directory.path());
    assert!(text.contains("config.json") && text.contains("GPT2LMHeadModel"), "{text}");
}

#[test]
fn a_missing_tensor_and_a_wrong_shape_are_named() {
    let directory = copy_of("qwen3");
    replace(&directory.path().join("config.json"), "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    let text = refusal(directory.path());
    assert!(text.contains("model.layers.2.") && text.contains("missing"), "{text}");
    replace(&directory.path().join("config.json"), "\"intermediate_size\": 72", "\"intermediate_size\": 64");
    let text = refusal(directory.path());
    assert!(text.contains("gate_proj") && text.contains("shape"), "{text}");
}

#[test]
fn an_unknown_rope_scaling_and_a_zero_dimension_are_refused() {
    let directory = copy_of("llama");
    let config = directory.path().join("config.json");
    replace(&config, "\"llama3\"", "\"longrope\"");
    assert!(refusal(directory.path()).contains("longrope"));
    replace(&config, "\"hidden_size\": 40", "\"hidden_size\": 0");
    assert!(refusal(directory.path()).contains("hidden_size"));
}
