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
use schemas::chat::Priority;
use serde_json::Value;

/// Safetensors in f32, f16 and bf16, sharded and whole; GGUF with every kind of block; scaled and plain rotation.
const MODELS: [&str; 6] = ["qwen3", "llama", "qwen2", "mistral", "llama-gguf", "qwen3-gguf"];

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
            assert!(worst <= 1e-3 * scale, "{name} at {position}: off by {worst} of {scale}");
        }
        let generated = run(&decoder, &[prompt], 64, Limits { step_tokens: 512, running: 8 }, 64);
        assert_eq!(generated[0], ids(&json["greedy"]), "{name}");
    }
}

#[test]
fn a_crowd_with_cut_prompts_and_scarce_blocks_gets_the_tokens_of_each_alone() {
    for name in MODELS {
        let (decoder, json) = reference(name);
        let base = ids(&json["prompt"]);
        // Some share a beginning of one or two blocks, some are equal, lengths differ.
        let prompts: Vec<Vec<u32>> = (0..12_usize)
            .map(|index| {
                let mut prompt = base[..17 + index % 5 * 5].to_vec();
                prompt.extend((0..index % 4).map(|more| (index * 31 + more * 7) as u32 % 131));
                prompt
            })
            .collect();
        let alone: Vec<Vec<u32>> = prompts
            .iter()
            .map(|prompt| {
                run(&decoder, std::slice::from_ref(prompt), 40, Limits { step_tokens: 512, running: 1 }, 64).remove(0)
            })
            .collect();
        for (step_tokens, blocks) in [(512, 200), (23, 200), (16, 14), (64, 9), (7, 7)] {
            let crowd = run(&decoder, &prompts, 40, Limits { step_tokens, running: 10 }, blocks);
            assert_eq!(crowd, alone, "{name} with {step_tokens} tokens a step and {blocks} blocks");
        }
    }
}

/// Generates greedily for all prompts through the scheduler; logits must agree bit for bit, so tokens do.
fn run(decoder: &Decoder, prompts: &[Vec<u32>], count: usize, limits: Limits, blocks: usize) -> Vec<Vec<u32>> {
    let mut scheduler = Scheduler::new(limits, blocks);
    let mut cache = decoder.cache(blocks);
    let mut scratch = Scratch::default();
    let mut generated = vec![Vec::new(); prompts.len()];
    for (id, prompt) in prompts.iter().enumerate() {
        scheduler.add(id as u64, id as u64 % 3, Priority::Normal, prompt.clone());
    }
    while !scheduler.is_idle() {
        let chunks = scheduler.schedule();
        assert!(!chunks.is_empty(), "progress");
        let logits = decoder.forward(&batch(&chunks), &mut cache, &mut scratch);
        let mut rows = logits.chunks_exact(decoder.architecture().vocabulary);
        for chunk in chunks.iter().filter(|chunk| chunk.yields) {
            let token = Sampling::default().pick(rows.next().unwrap(), 0).unwrap();
            let answer: &mut Vec<u32> = &mut generated[chunk.sequence as usize];
            answer.push(token);
            scheduler.complete(chunk.sequence, Some(token));
            if answer.len() == count {
                scheduler.remove(chunk.sequence);
            }
        }
    }
    assert_eq!(scheduler.blocks().free(), blocks, "no block leaks");
    generated
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
