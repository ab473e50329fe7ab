//! A model that cannot be used is refused with the file and the reason.

use std::path::{Path, PathBuf};

use inference_worker::{
    architecture::Architecture,
    gguf::GgufFile,
    model::Decoder,
    model_directory::{Model, name_of},
    weights::SafetensorsFiles,
};
use serde_json::json;

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
        Decoder::load(&architecture, &SafetensorsFiles::open(directory)?)
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
    replace(&config, "\"longrope\"", "\"llama3\", \"partial_rotary_factor\": 0.5");
    assert!(refusal(directory.path()).contains("partial_rotary_factor is 0.5"));
    replace(&config, "\"hidden_size\": 40", "\"hidden_size\": 0");
    assert!(refusal(directory.path()).contains("hidden_size"));
}

#[test]
fn a_gguf_file_brings_its_tokenizer_and_template() {
    let directory = copy_of("llama-gguf");
    let path = directory.path().join("llama-gguf.gguf");
    let model = Model::load(&path).unwrap();
    assert_eq!((model.name.as_str(), name_of(&path).as_str()), ("llama-gguf", "llama-gguf"));
    assert_eq!(model.end_tokens, [2]);
    let prompt = model.template.render(&[json!({"role": "user", "content": "hello world"})], &[]).unwrap();
    assert_eq!(prompt, "<s>hello world");
    let ids = model.tokenizer.encode(&prompt).unwrap();
    let pieces: Vec<u32> = ["<s>", "▁hello", "▁world"].iter().map(|piece| model.tokenizer.id(piece).unwrap()).collect();
    assert_eq!(ids, pieces);
    let mut bytes = Vec::new();
    ids.iter().for_each(|&id| model.tokenizer.append_bytes(id, &mut bytes));
    assert_eq!(bytes, b" hello world");
    // A directory with one GGUF file is that model under the directory's name.
    let by_directory = Model::load(directory.path()).unwrap();
    assert_eq!(by_directory.name, name_of(directory.path()));
}

#[test]
fn a_byte_level_vocabulary_is_read_from_a_gguf_file() {
    let directory = copy_of("qwen3-gguf");
    let model = Model::load(&directory.path().join("qwen3-gguf.gguf")).unwrap();
    let prompt = model.template.render(&[json!({"role": "user", "content": "b ab a"})], &[]).unwrap();
    assert_eq!(prompt, "<|im_start|>b ab a<|im_end|>");
    let ids = model.tokenizer.encode(&prompt).unwrap();
    let pieces = ["<|im_start|>", "b", "Ġa", "b", "Ġa", "<|im_end|>"];
    let pieces: Vec<u32> = pieces.iter().map(|piece| model.tokenizer.id(piece).unwrap()).collect();
    assert_eq!(ids, pieces);
    assert_eq!(model.end_tokens, [130]);
}

#[test]
fn files_beside_a_gguf_file_go_before_what_is_in_it_and_must_fit() {
    let directory = copy_of("qwen3-gguf");
    let path = directory.path().join("qwen3-gguf.gguf");
    let config = json!({"chat_template": "beside {{ eos_token }}", "eos_token": "b"});
    std::fs::write(directory.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    assert_eq!(Model::load(&path).unwrap().template.render(&[], &[]).unwrap(), "beside b");
    let vocabulary: serde_json::Map<_, _> = (0..140).map(|id| (format!("t{id}"), id.into())).collect();
    let tokenizer = json!({"version": "1.0", "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "t0"}});
    std::fs::write(directory.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let text = Model::load(&path).expect_err("the tokenizer has too many ids").to_string();
    assert!(text.contains("tokenizer.json") && text.contains("139") && text.contains("131"), "{text}");
}

#[test]
fn a_gguf_file_truncated_anywhere_is_refused() {
    let directory = copy_of("qwen3-gguf");
    let path = directory.path().join("qwen3-gguf.gguf");
    let whole = std::fs::read(&path).unwrap();
    for length in [0, 3, 8, 100, 3_000, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let text = GgufFile::open(&path).expect_err("it is refused").to_string();
        assert!(text.contains("qwen3-gguf.gguf") && text.contains("truncated"), "{length}: {text}");
    }
}

#[test]
fn a_gguf_file_of_another_architecture_is_named() {
    let directory = copy_of("qwen3-gguf");
    let path = directory.path().join("qwen3-gguf.gguf");
    let mut bytes = std::fs::read(&path).unwrap();
    let key = b"general.architecture";
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap() + key.len() + 12;
    assert_eq!(&bytes[at..at + 5], b"qwen3");
    bytes[at..at + 5].copy_from_slice(b"bloom");
    std::fs::write(&path, bytes).unwrap();
    let text = Model::load(&path).expect_err("it is refused").to_string();
    assert!(text.contains("qwen3-gguf.gguf") && text.contains("bloom"), "{text}");
}
