//! The decoder against Hugging Face transformers, on small random models (`reference/make_reference.py`), and against
//! itself: a crowd, cut prompts, shared and scarce blocks must change nothing.

use std::{collections::BTreeMap, path::PathBuf};

use inference_worker::{
    architecture::Architecture,
    gguf::GgufFile,
    kv::BLOCK,
    model::{Batch, Decoder, Scratch},
    sample::Sampling,
    scheduler::{Chunk, Limits, Scheduler},
    weights::SafetensorsFiles,
};
use serde_json::Value;

/// Safetensors in f32, f16 and bf16, sharded and whole; GGUF with every kind of block; scaled and plain rotation.
const MODELS: [&str; 7] = ["qwen3", "llama", "llama-biased", "qwen2", "mistral", "llama-gguf", "qwen3-gguf"];
/// How far a logit may be off, as a part of the largest.
const TOLERANCE: f32 = 1e-5;
/// Tokens of every answer.
const ANSWER: usize = 64;

fn reference(name: &str) -> (Decoder, Value) {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(name);
    let gguf = directory.join(format!("{name}.gguf"));
    let decoder = if gguf.exists() {
        let file = GgufFile::open(&gguf).unwrap();
        Decoder::load(file.architecture().clone(), &file).unwrap()
    } else {
        let architecture = Architecture::read(&directory.join("config.json")).unwrap();
        Decoder::load(architecture, &SafetensorsFiles::open(&directory).unwrap()).unwrap()
    };
    let json = serde_json::from_slice(&std::fs::read(directory.join("reference.json")).unwrap()).unwrap();
    (decoder, json)
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn logits_and_greedy_tokens_equal_those_of_transformers() {
    for name in MODELS {
        let (decoder, json) = reference(name);
        let prompt = ids(&json["prompt"]);
        let blocks: Vec<u32> = (0..prompt.len().div_ceil(BLOCK) as u32).collect();
        let wanted: BTreeMap<usize, Vec<f32>> = serde_json::from_value(json["logits"].clone()).unwrap();
        let batch = Batch {
            positions: (0..prompt.len()).collect(),
            sequences: vec![0; prompt.len()],
            tables: vec![&blocks],
            outputs: wanted.keys().copied().collect(),
            tokens: prompt.clone(),
        };
        let mut scratch = Scratch::default();
        let mut cache = decoder.cache(blocks.len());
        let logits = decoder.forward(&batch, &mut cache, &mut scratch);
        for (row, (position, wanted)) in logits.chunks_exact(decoder.architecture().vocabulary).zip(&wanted) {
            let scale = wanted.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
            let worst = row.iter().zip(wanted).fold(0.0_f32, |worst, (ours, theirs)| worst.max((ours - theirs).abs()));
            println!("{name} at {position}: off by {worst:e} of {scale}");
            assert!(worst <= TOLERANCE * scale, "{name} at {position}: off by {worst} of {scale}");
        }
        let generated = run(&decoder, &[prompt], Limits { step_tokens: 512, running: 8 }, 64);
        assert_eq!(generated.answers[0], ids(&json["greedy"]), "{name}");
    }
}

#[test]
fn a_crowd_with_cut_prompts_and_scarce_blocks_gets_the_tokens_of_each_alone() {
    for name in MODELS {
        let (decoder, json) = reference(name);
        let base = ids(&json["prompt"]);
        // Some share a beginning of one or two blocks, some are equal, lengths differ; the last is the reference's.
        let mut prompts: Vec<Vec<u32>> = (0..11_usize)
            .map(|index| {
                let mut prompt = base[..17 + index % 5 * 5].to_vec();
                prompt.extend((0..index % 4).map(|more| (index * 31 + more * 7) as u32 % 131));
                prompt
            })
            .collect();
        prompts.push(base);
        let alone: Vec<Vec<u32>> = prompts
            .iter()
            .map(|prompt| {
                run(&decoder, std::slice::from_ref(prompt), Limits { step_tokens: 512, running: 1 }, 64)
                    .answers
                    .remove(0)
            })
            .collect();
        assert_eq!(alone[11], ids(&json["greedy"]), "{name}");
        for (step_tokens, blocks) in [(512, 200), (23, 200), (16, 20), (64, 12), (7, 7)] {
            let crowd = run(&decoder, &prompts, Limits { step_tokens, running: 10 }, blocks);
            let with = format!("{name} with {step_tokens} tokens a step and {blocks} blocks");
            assert_eq!(crowd.answers, alone, "{with}");
            assert!(crowd.found > 0, "{with}: beginnings are shared");
            assert_eq!(crowd.started_over > 0, blocks < 100, "{with}: only where blocks are scarce some start over");
        }
    }
}

/// What came of a run through the scheduler.
struct Run {
    answers: Vec<Vec<u32>>,
    /// Sequences that began behind a prefix that others had computed.
    found: usize,
    /// Times a sequence lost its blocks and computed again what it had.
    started_over: usize,
}

/// Generates greedily for all prompts through the scheduler; logits must agree bit for bit, so tokens do.
fn run(decoder: &Decoder, prompts: &[Vec<u32>], limits: Limits, blocks: usize) -> Run {
    let mut scheduler = Scheduler::new(limits, blocks);
    let mut cache = decoder.cache(blocks);
    let mut scratch = Scratch::default();
    let mut out = Run { answers: vec![Vec::new(); prompts.len()], found: 0, started_over: 0 };
    let mut ends: Vec<Option<usize>> = vec![None; prompts.len()];
    for (id, prompt) in prompts.iter().enumerate() {
        scheduler.add(id as u64, id as u64 % 3, prompt.clone());
    }
    while !scheduler.is_idle() {
        let chunks = scheduler.schedule();
        assert!(!chunks.is_empty(), "progress");
        for chunk in &chunks {
            let end = ends[chunk.sequence as usize].replace(chunk.start + chunk.tokens.len());
            out.found += usize::from(end.is_none() && chunk.start > 0);
            out.started_over += usize::from(end.is_some_and(|end| end != chunk.start));
        }
        let logits = decoder.forward(&batch(&chunks), &mut cache, &mut scratch);
        let mut rows = logits.chunks_exact(decoder.architecture().vocabulary);
        for chunk in chunks.iter().filter(|chunk| chunk.yields) {
            let token = Sampling::default().pick(rows.next().unwrap(), 0).unwrap();
            let answer: &mut Vec<u32> = &mut out.answers[chunk.sequence as usize];
            answer.push(token);
            scheduler.complete(chunk.sequence, Some(token));
            if answer.len() == ANSWER {
                scheduler.remove(chunk.sequence);
            }
        }
    }
    assert_eq!(scheduler.blocks().free(), blocks, "no block leaks");
    out
}

/// Every stretching of positions in both spellings, against what transformers makes of the same configuration.
#[test]
fn positions_turn_as_in_transformers() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/reference");
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(folder.join("rope.json")).unwrap()).unwrap();
    let plain: Value = serde_json::from_slice(&std::fs::read(folder.join("qwen3/config.json")).unwrap()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    for case in cases {
        let mut config = plain.clone();
        let asked = config.as_object_mut().unwrap();
        asked.retain(|key, _| !key.starts_with("rope_"));
        asked.extend(case["config"].as_object().unwrap().clone());
        let path = directory.path().join("config.json");
        std::fs::write(&path, config.to_string()).unwrap();
        let rope = Architecture::read(&path).unwrap().rope;
        let wanted: Vec<f32> = serde_json::from_value(case["inverse"].clone()).unwrap();
        let ours = rope.frequencies(case["width"].as_u64().unwrap() as usize);
        assert_eq!(ours.len(), wanted.len());
        for (pair, (ours, theirs)) in ours.iter().zip(&wanted).enumerate() {
            assert!((ours - theirs).abs() <= 2e-6 * theirs, "{}: pair {pair} is {ours}, not {theirs}", case["config"]);
        }
        let amplitude = case["amplitude"].as_f64().unwrap() as f32;
        assert!((rope.amplitude() - amplitude).abs() <= 1e-6, "{}: {} {amplitude}", case["config"], rope.amplitude());
    }
}

fn batch(chunks: &[Chunk]) -> Batch<'_> {
    let mut batch = Batch::default();
    for (index, chunk) in chunks.iter().enumerate() {
        batch.tokens.extend(&chunk.tokens);
        batch.positions.extend(chunk.start..chunk.start + chunk.tokens.len());
        batch.sequences.extend(chunk.tokens.iter().map(|_| index));
        batch.tables.push(&chunk.blocks);
        if chunk.yields {
            batch.outputs.push(batch.tokens.len() - 1);
        }
    }
    batch
}
