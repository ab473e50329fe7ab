//! The decoder against Hugging Face transformers, on small random models (`reference/make_reference.py`), and against
//! itself: a crowd, cut prompts, shared and scarce blocks must change nothing.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::mpsc::{Receiver, Sender},
};

use inference_worker::{
    architecture::Architecture,
    compute::batch,
    gguf::GgufFile,
    kernels::team::Team,
    kv::BLOCK,
    model::{Batch, Decoder, Scratch},
    parallel::{Rank, Threads},
    sample::Sampling,
    scheduler::{Limits, Scheduler},
    weights::SafetensorsFiles,
};
use schemas::chat::Priority;
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
        Decoder::load(file.architecture(), &file).unwrap()
    } else {
        let architecture = Architecture::read(&directory.join("config.json")).unwrap();
        Decoder::load(&architecture, &SafetensorsFiles::open(&directory).unwrap()).unwrap()
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
        let (mut decoder, json) = reference(name);
        decoder.be_exact();
        let prompt = ids(&json["prompt"]);
        let blocks: Vec<u32> = (0..prompt.len().div_ceil(BLOCK) as u32).collect();
        let wanted: BTreeMap<usize, Vec<f32>> = serde_json::from_value(json["logits"].clone()).unwrap();
        let batch = whole(&prompt, &blocks, &wanted);
        for (position, off) in errors(&decoder, &batch, &wanted) {
            println!("{name} at {position}: off by {off:e} of the largest logit");
            assert!(off <= TOLERANCE, "{name} at {position}: off by {off} of the largest logit");
        }
        let generated = run(&decoder, &[prompt], Limits { step_tokens: 512, running: 8 }, 64);
        assert_eq!(generated.answers[0], ids(&json["greedy"]), "{name}");
    }
}

#[test]
fn rounded_activations_change_logits_by_a_few_hundredths_at_most() {
    for name in ["llama-gguf", "qwen3-gguf"] {
        let (decoder, json) = reference(name);
        let prompt = ids(&json["prompt"]);
        let blocks: Vec<u32> = (0..prompt.len().div_ceil(BLOCK) as u32).collect();
        let wanted: BTreeMap<usize, Vec<f32>> = serde_json::from_value(json["logits"].clone()).unwrap();
        let batch = whole(&prompt, &blocks, &wanted);
        let found = errors(&decoder, &batch, &wanted);
        println!("{name}: {found:?}");
        for (position, off) in found {
            assert!(off <= 0.05, "{name} at {position}: off by {off} of the largest logit");
        }
    }
}

/// A prompt computed at once.
fn whole<'a>(prompt: &[u32], blocks: &'a [u32], wanted: &BTreeMap<usize, Vec<f32>>) -> Batch<'a> {
    Batch {
        positions: (0..prompt.len()).collect(),
        sequences: vec![0; prompt.len()],
        tables: vec![blocks],
        outputs: wanted.keys().copied().collect(),
        tokens: prompt.to_vec(),
    }
}

/// By position: the largest difference of a logit, as a part of the largest logit.
fn errors(decoder: &Decoder, batch: &Batch<'_>, wanted: &BTreeMap<usize, Vec<f32>>) -> Vec<(usize, f32)> {
    let mut scratch = Scratch::default();
    let mut cache = decoder.cache(batch.tables[0].len());
    let logits = decoder.forward(&Team::alone(), batch, &mut cache, &mut scratch);
    let rows = logits.chunks_exact(decoder.architecture().vocabulary).zip(wanted);
    rows.map(|(row, (position, wanted))| {
        let scale = wanted.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let worst = row.iter().zip(wanted).fold(0.0_f32, |worst, (ours, theirs)| worst.max((ours - theirs).abs()));
        (*position, worst / scale)
    })
    .collect()
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
        // Rounded activations may choose otherwise; with exact ones the tokens are compared above.
        if !name.ends_with("-gguf") {
            assert_eq!(alone[11], ids(&json["greedy"]), "{name}");
        }
        for (step_tokens, blocks) in [(512, 200), (23, 200), (16, 20), (64, 12), (7, 7)] {
            let crowd = run(&decoder, &prompts, Limits { step_tokens, running: 10 }, blocks);
            let with = format!("{name} with {step_tokens} tokens a step and {blocks} blocks");
            assert_eq!(crowd.answers, alone, "{with}");
            assert!(crowd.found > 0, "{with}: beginnings are shared");
            assert_eq!(crowd.started_over > 0, blocks < 100, "{with}: only where blocks are scarce some start over");
        }
    }
}

#[test]
fn ranks_that_share_every_layer_give_the_tokens_of_transformers() {
    for name in ["qwen3", "llama", "qwen2", "mistral"] {
        let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(name);
        let architecture = Architecture::read(&directory.join("config.json")).unwrap();
        let weights = SafetensorsFiles::open(&directory).unwrap();
        let (_, json) = reference(name);
        let prompt = ids(&json["prompt"]);
        for of in [2, 4] {
            let parts = (0..of).map(|index| Decoder::load_part(&architecture, &weights, Rank { index, of }).unwrap());
            let parts: Vec<Decoder> = parts.collect();
            let (told, hear): (Vec<_>, Vec<_>) = (0..of).map(|_| std::sync::mpsc::channel::<u32>()).unzip();
            let greedy = std::thread::scope(|scope| {
                let ranks = parts.iter().zip(Threads::ranks(of)).zip(hear);
                let threads: Vec<_> = ranks
                    .map(|((part, rank), hear)| {
                        let (prompt, told) = (&prompt, &told);
                        scope.spawn(move || generate_part(part, &rank, prompt, told, &hear))
                    })
                    .collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).next().unwrap()
            });
            assert_eq!(greedy, ids(&json["greedy"]), "{name} on {of} ranks");
        }
    }
    let refused = Rank { index: 0, of: 3 }.part_of(reference("qwen3").0.architecture()).unwrap_err();
    assert!(refused.contains("4 heads, 2 key-value heads") && refused.contains("3 ranks"), "{refused}");
}

/// What one rank does: the first picks the tokens and tells all.
fn generate_part(
    part: &Decoder,
    rank: &Threads,
    prompt: &[u32],
    told: &[Sender<u32>],
    hear: &Receiver<u32>,
) -> Vec<u32> {
    let blocks: Vec<u32> = (0..16).collect();
    let (mut cache, mut scratch) = (part.cache(blocks.len()), Scratch::default());
    let (mut generated, mut start, mut tokens) = (Vec::new(), 0, prompt.to_vec());
    while generated.len() < 64 {
        let batch = Batch {
            positions: (start..start + tokens.len()).collect(),
            sequences: vec![0; tokens.len()],
            tables: vec![&blocks],
            outputs: vec![tokens.len() - 1],
            tokens: tokens.clone(),
        };
        let logits = part.forward_part(rank, &Team::alone(), &batch, &mut cache, &mut scratch);
        if !logits.is_empty() {
            let token = Sampling::default().pick(logits, 0).unwrap();
            told.iter().for_each(|rank| rank.send(token).unwrap());
        }
        start += tokens.len();
        tokens = vec![hear.recv().unwrap()];
        generated.extend(&tokens);
    }
    generated
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
    // Threads share the work by chance, which must not show in the results.
    let team = Team::new(3).unwrap();
    let mut cache = decoder.cache(blocks);
    let mut scratch = Scratch::default();
    let mut out = Run { answers: vec![Vec::new(); prompts.len()], found: 0, started_over: 0 };
    let mut ends: Vec<Option<usize>> = vec![None; prompts.len()];
    for (id, prompt) in prompts.iter().enumerate() {
        scheduler.add(id as u64, id as u64 % 3, Priority::Normal, prompt.clone());
    }
    while !scheduler.is_idle() {
        let chunks = scheduler.schedule();
        assert!(!chunks.is_empty(), "progress");
        for chunk in &chunks {
            let end = ends[chunk.sequence as usize].replace(chunk.start + chunk.tokens.len());
            out.found += usize::from(end.is_none() && chunk.start > 0);
            out.started_over += usize::from(end.is_some_and(|end| end != chunk.start));
        }
        let logits = decoder.forward(&team, &batch(&chunks), &mut cache, &mut scratch);
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
