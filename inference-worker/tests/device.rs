//! The decoder on a device, from the weights to the tokens, on one that is emulated: the GPU's own kernels, compiled for
//! this CPU, in a queue that is stricter than a GPU's. What it computes is held against the CPU's decoder.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use half::bf16;
use inference_worker::{
    architecture::Architecture,
    compute::{Compute, Row, Step, Wanted},
    cuda::{
        Limits as GpuLimits, OnDevice,
        decoder::{Decoder as DeviceDecoder, LoadError},
        device::{Buffer, Fault},
        need::GpuNeed,
        ranks::{Ranks, Together},
        steps::Steps,
    },
    engine::{Engine, EngineConfig, Event, Outcome, Request, Running},
    gguf::GgufFile,
    kernels::{matrix::Matrix, team::Team},
    kv::BLOCK,
    model::{Batch, Decoder, Scratch},
    model_directory::{Error, Model},
    sample::Sampling,
    scheduler::{Chunk, Limits, Scheduler},
    weights::{BlockKind, Blocks, Progress, SafetensorsFiles, Stored, Weights},
};
use schemas::chat::{Priority, ResponseFormat};
use serde_json::{Value, json};

#[path = "device/emulated.rs"]
mod emulated;
#[path = "cuda/emulated.rs"]
#[allow(dead_code, reason = "tests of single kernels use more of it")]
mod kernels;

use emulated::Emulated;

/// How far a logit may be off, as a part of the largest: activations are rounded to eight bits after every product, and the
/// scores of attention, whose weights are exponents of them, are large in models of random weights.
const TOLERANCE: f32 = 0.06;
/// How far logits may be off as a whole, by their roots of mean squares.
const TOLERANCE_RMS: f32 = 0.05;
/// Tokens of an answer.
const ANSWER: usize = 24;
/// Memory of the emulated GPU.
const MEMORY: usize = 256 << 20;

/// A model on both.
struct Both {
    name: &'static str,
    host: Decoder,
    emulated: Arc<Emulated>,
    device: Arc<DeviceDecoder<Emulated>>,
}

impl Both {
    fn of(name: &'static str, a: &Architecture, weights: &impl Weights) -> Self {
        let emulated = Emulated::new(MEMORY);
        let host = Decoder::load(a, &Rounded(weights)).unwrap();
        let device = Arc::new(DeviceDecoder::load(&emulated, a, weights).unwrap());
        Self { name, host, emulated, device }
    }

    fn directory(name: &'static str, directory: &Path) -> Self {
        let architecture = Architecture::read(&directory.join("config.json")).unwrap();
        Self::of(name, &architecture, &SafetensorsFiles::open(directory).unwrap())
    }

    fn steps(&self, config: &EngineConfig) -> Steps<Emulated> {
        Steps::new(Arc::clone(&self.device), config).unwrap()
    }
}

/// The same weights as the device has: in bf16.
struct Rounded<'a, W>(&'a W);

impl<W: Weights> Weights for Rounded<'_, W> {
    fn refuse(&self, reason: &str) -> Error {
        self.0.refuse(reason)
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        self.0.tensor(name, shape)
    }

    fn matrix(&self, name: &str, outputs: usize, inputs: usize) -> Result<Matrix, Error> {
        let floats = self.0.matrix(name, outputs, inputs)?.into_floats();
        Ok(Matrix::Float(floats.into_iter().map(|value| bf16::from_f32(value).to_f32()).collect()))
    }

    fn stored(&self, name: &str) -> Option<Stored> {
        self.0.stored(name)
    }
}

fn reference(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(name)
}

/// The models that transformers has computed, as far as their widths suit the kernels; and random ones for the rest of
/// what a model may have.
fn models() -> Vec<Both> {
    let gguf = GgufFile::open(&reference("qwen3-gguf/qwen3-gguf.gguf")).unwrap();
    let mut all = vec![
        Both::directory("qwen3", &reference("qwen3")),
        Both::directory("mistral", &reference("mistral")),
        Both::of("qwen3-gguf", gguf.architecture(), &gguf),
    ];
    for (name, config) in random_configs() {
        let directory = tempfile::tempdir().unwrap();
        write_random(directory.path(), &config);
        all.push(Both::directory(name, directory.path()));
    }
    all
}

/// Scaled rotation in each way, biases here and there, heads of the widths that have kernels of their own.
fn random_configs() -> Vec<(&'static str, Value)> {
    let common = |architecture: &str, more: Value| {
        let mut config = json!({
            "architectures": [architecture], "vocab_size": 131, "hidden_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 96,
            "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
            "hidden_act": "silu",
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    let llama3 = json!({"head_dim": 128, "num_attention_heads": 8, "num_key_value_heads": 1, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}});
    let yarn = json!({"tie_word_embeddings": true, "rope_scaling": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}});
    let biased = json!({"attention_bias": true, "head_dim": 64, "num_attention_heads": 3, "num_key_value_heads": 3});
    let window = json!({"sliding_window": 20, "head_dim": 64, "num_attention_heads": 12, "num_key_value_heads": 1});
    vec![
        ("llama3 of 128", common("LlamaForCausalLM", llama3)),
        ("qwen2 of 32", common("Qwen2ForCausalLM", yarn)),
        ("biased llama of 64", common("LlamaForCausalLM", biased)),
        ("mistral of 64", common("MistralForCausalLM", window)),
    ]
}

/// Writes a model of random weights in bf16.
fn write_random(directory: &Path, config: &Value) {
    std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
    let a = Architecture::read(&directory.join("config.json")).unwrap();
    let (query, key) = (a.heads * a.head_width, a.kv_heads * a.head_width);
    let mut tensors: Vec<(String, Vec<usize>)> = vec![
        ("model.embed_tokens.weight".to_owned(), vec![a.vocabulary, a.hidden]),
        ("model.norm.weight".to_owned(), vec![a.hidden]),
    ];
    if !a.tied_embeddings {
        tensors.push(("lm_head.weight".to_owned(), vec![a.vocabulary, a.hidden]));
    }
    for layer in 0..a.layers {
        let mut add =
            |rest: &str, shape: &[usize]| tensors.push((format!("model.layers.{layer}.{rest}"), shape.to_vec()));
        add("input_layernorm.weight", &[a.hidden]);
        add("post_attention_layernorm.weight", &[a.hidden]);
        for (which, width) in [("q", query), ("k", key), ("v", key)] {
            add(&format!("self_attn.{which}_proj.weight"), &[width, a.hidden]);
            if a.qkv_bias {
                add(&format!("self_attn.{which}_proj.bias"), &[width]);
            }
        }
        add("self_attn.o_proj.weight", &[a.hidden, query]);
        if a.output_bias {
            add("self_attn.o_proj.bias", &[a.hidden]);
        }
        if a.query_key_norm {
            add("self_attn.q_norm.weight", &[a.head_width]);
            add("self_attn.k_norm.weight", &[a.head_width]);
        }
        add("mlp.gate_proj.weight", &[a.intermediate, a.hidden]);
        add("mlp.up_proj.weight", &[a.intermediate, a.hidden]);
        add("mlp.down_proj.weight", &[a.hidden, a.intermediate]);
    }
    let mut seed = 7_u64;
    let mut number = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let filled: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, shape)| {
            let norm = name.contains("norm");
            let values = (0..shape.iter().product::<usize>())
                .flat_map(|_| bf16::from_f32(if norm { 1.0 + number() / 4.0 } else { number() / 3.0 }).to_le_bytes());
            let values = values.collect();
            (name, shape, values)
        })
        .collect();
    let views = filled.iter().map(|(name, shape, values)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape.clone(), values).unwrap();
        (name.clone(), view)
    });
    std::fs::write(directory.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}

fn config(step_tokens: usize, slots: usize, blocks: usize, both: &Both) -> EngineConfig {
    config_of(step_tokens, slots, blocks, both.host.architecture())
}

/// With so many blocks for what a device computes.
fn config_of(step_tokens: usize, slots: usize, blocks: usize, a: &Architecture) -> EngineConfig {
    let block = 2 * a.layers * a.kv_heads * BLOCK * a.head_width * 2;
    let gpu =
        GpuLimits { step_tokens, memory_part: 1.0, cache_bytes_max: Some(blocks * block), ..GpuLimits::default() };
    EngineConfig { slots, gpu, ..EngineConfig::default() }
}

/// Prompts that share beginnings of no, one and two blocks, some equal, of many lengths.
fn prompts(count: usize) -> Vec<Vec<u32>> {
    let base: Vec<u32> = (0..60).map(|at| (at * 37 + 11) % 131).collect();
    (0..count)
        .map(|index| {
            let mut prompt = base[..1 + index * 7 % 47].to_vec();
            prompt.extend((0..index % 4).map(|more| (index * 31 + more * 7) as u32 % 131));
            prompt
        })
        .collect()
}

/// The CPU's logits at each position of these tokens.
fn host_logits(decoder: &Decoder, tokens: &[u32]) -> Vec<Vec<f32>> {
    let blocks: Vec<u32> = (0..tokens.len().div_ceil(BLOCK) as u32).collect();
    let batch = Batch {
        positions: (0..tokens.len()).collect(),
        sequences: vec![0; tokens.len()],
        tables: vec![&blocks],
        outputs: (0..tokens.len()).collect(),
        tokens: tokens.to_vec(),
    };
    let (mut cache, mut scratch) = (decoder.cache(blocks.len()), Scratch::default());
    let logits = decoder.forward(&Team::alone(), &batch, &mut cache, &mut scratch);
    logits.chunks_exact(decoder.architecture().vocabulary).map(<[f32]>::to_vec).collect()
}

fn largest(row: &[f32]) -> f32 {
    row.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()))
}

#[test]
fn logits_are_those_of_the_cpu_but_for_rounding() {
    for both in models() {
        let prompts = prompts(13);
        let mut steps = both.steps(&config(2_048, 16, 64, &both));
        // Prompts of all lengths in one step, then one more token each.
        let mut scheduler = Scheduler::new(Limits { step_tokens: 2_048, running: 16 }, steps.blocks());
        for (id, prompt) in prompts.iter().enumerate() {
            scheduler.add(id as u64, 0, Priority::Normal, prompt.clone());
        }
        let mut known = prompts.clone();
        let (mut worst, mut worst_rms) = (0.0_f32, 0.0_f32);
        for _ in 0..3 {
            let chunks = scheduler.schedule();
            assert_eq!(chunks.len(), prompts.len());
            let ids: Vec<u64> = chunks.iter().map(|chunk| chunk.sequence).collect();
            steps.begin(Step { wanted: vec![Wanted::Logits; chunks.len()], chunks }).unwrap();
            let rows = steps.finish(&mut |_| None).unwrap();
            for (id, row) in ids.into_iter().zip(rows) {
                let Row::Logits(row) = row else { panic!("logits were wanted") };
                let tokens = &mut known[id as usize];
                let wanted = host_logits(&both.host, tokens).pop().unwrap();
                let scale = largest(&wanted);
                let off = row.iter().zip(&wanted).map(|(ours, theirs)| (ours - theirs).abs() / scale);
                worst = off.fold(worst, f32::max);
                let square = |values: &mut dyn Iterator<Item = f32>| values.map(|value| value * value).sum::<f32>();
                let off = square(&mut row.iter().zip(&wanted).map(|(ours, theirs)| ours - theirs));
                worst_rms = worst_rms.max((off / square(&mut wanted.iter().copied())).sqrt());
                let token = Sampling::default().pick(&wanted, 0).unwrap();
                tokens.push(token);
                scheduler.complete(id, Some(token));
            }
        }
        println!("{}: off by {worst} of the largest logit, by {worst_rms} as a whole", both.name);
        assert!(worst <= TOLERANCE, "{}: off by {worst} of the largest logit", both.name);
        assert!(worst_rms <= TOLERANCE_RMS, "{}: off by {worst_rms} as a whole", both.name);
    }
}

/// What came of a run.
struct Run {
    answers: Vec<Vec<u32>>,
    /// Sequences that began behind a prefix that others had computed.
    found: usize,
    /// Times a sequence lost its blocks and computed again what it had.
    started_over: usize,
    /// Shapes that were recorded.
    recordings: usize,
}

fn run(both: &Both, prompts: &[Vec<u32>], step_tokens: usize, slots: usize, blocks: usize) -> Run {
    let mut steps = both.steps(&config(step_tokens, slots, blocks, both));
    let total = steps.blocks();
    let run = generate(&mut steps, total, prompts, step_tokens, slots);
    Run { recordings: steps.recordings(), ..run }
}

/// Generates greedily for all prompts, each step begun before the tokens of the one before it are known.
fn generate(steps: &mut dyn Compute, total: usize, prompts: &[Vec<u32>], step_tokens: usize, slots: usize) -> Run {
    let mut scheduler = Scheduler::new(Limits { step_tokens, running: slots }, total);
    let mut answers = vec![Vec::new(); prompts.len()];
    let mut ends: Vec<Option<usize>> = vec![None; prompts.len()];
    let (mut found, mut started_over) = (0, 0);
    for (id, prompt) in prompts.iter().enumerate() {
        scheduler.add(id as u64, id as u64 % 3, Priority::Normal, prompt.clone());
    }
    let mut under_way: Option<Vec<u64>> = None;
    while !scheduler.is_idle() || under_way.is_some() {
        let chunks = scheduler.schedule();
        for chunk in &chunks {
            let end = ends[chunk.sequence as usize].replace(chunk.start + chunk.tokens.len());
            found += usize::from(end.is_none() && chunk.start > 0);
            started_over += usize::from(end.is_some_and(|end| end != chunk.start));
        }
        let yields = |chunks: &[Chunk]| -> Vec<u64> {
            chunks.iter().filter(|chunk| chunk.yields).map(|chunk| chunk.sequence).collect()
        };
        let newer = (!chunks.is_empty()).then(|| yields(&chunks));
        if let Some(newer) = &newer {
            steps.begin(Step { chunks, wanted: vec![Wanted::Token(Sampling::default()); newer.len()] }).unwrap();
            newer.iter().for_each(|id| scheduler.promise(*id));
        }
        assert!(newer.is_some() || under_way.is_some(), "progress");
        let older = std::mem::replace(&mut under_way, newer);
        for (id, row) in
            older.iter().flatten().zip(if older.is_some() { steps.finish(&mut |_| None).unwrap() } else { Vec::new() })
        {
            let Row::Token(token) = row else { panic!("tokens were wanted") };
            let answer: &mut Vec<u32> = &mut answers[*id as usize];
            // What was drawn too early is thrown away.
            if answer.len() < ANSWER {
                answer.push(token.unwrap());
                scheduler.complete(*id, token);
            }
            if answer.len() == ANSWER {
                scheduler.remove(*id);
            }
        }
    }
    assert_eq!(scheduler.blocks().free(), total, "no block leaks");
    Run { answers, found, started_over, recordings: 0 }
}

/// Every token is the CPU's choice for what stands before it, or as good as that but for rounding.
fn check(both: &Both, prompts: &[Vec<u32>], answers: &[Vec<u32>], with: &str) {
    let (mut same, mut all) = (0, 0);
    for (prompt, answer) in prompts.iter().zip(answers) {
        assert_eq!(answer.len(), ANSWER, "{with}");
        let logits = host_logits(&both.host, &[prompt.as_slice(), answer].concat());
        for (at, token) in answer.iter().enumerate() {
            let row = &logits[prompt.len() + at - 1];
            let best = Sampling::default().pick(row, 0).unwrap();
            let behind = (row[best as usize] - row[*token as usize]) / largest(row);
            assert!(behind <= 2.0 * TOLERANCE, "{with}: token {at} is {behind} of the largest logit behind the best");
            same += usize::from(best == *token);
            all += 1;
        }
    }
    assert!(same * 10 >= all * 9, "{with}: {same} of {all} tokens are the CPU's");
}

#[test]
fn a_crowd_with_cut_prompts_and_scarce_blocks_gets_the_tokens_of_the_cpu() {
    let all = [(512, 16, 200), (23, 9, 200), (16, 10, 20), (64, 3, 7), (7, 7, 7)];
    for both in models() {
        let prompts = prompts(11);
        for (step_tokens, slots, blocks) in all {
            let with = format!("{} with {step_tokens} tokens a step, {slots} places and {blocks} blocks", both.name);
            let crowd = run(&both, &prompts, step_tokens, slots, blocks);
            check(&both, &prompts, &crowd.answers, &with);
            assert!(crowd.found > 0, "{with}: beginnings are shared");
            assert_eq!(crowd.started_over > 0, blocks < 100, "{with}: only where blocks are scarce some start over");
            assert!(crowd.recordings > 0, "{with}: steps are recorded");
        }
        assert!(both.emulated.replayed.load(Ordering::SeqCst) > 0);
    }
}

#[test]
fn recorded_steps_compute_what_kernel_by_kernel_is_computed() {
    let (recording, forgetting) =
        (Both::directory("qwen3", &reference("qwen3")), Both::directory("qwen3", &reference("qwen3")));
    forgetting.emulated.forget();
    let prompts = prompts(11);
    let recorded = run(&recording, &prompts, 512, 9, 200);
    let plain = run(&forgetting, &prompts, 512, 9, 200);
    assert!(recorded.recordings > 0 && plain.recordings == 0);
    // The same kernels over the same rows: not even rounding differs.
    assert_eq!(recorded.answers, plain.answers);
}

/// Models that can be cut for two and for four: with a key-value head for each, or fewer than that, or one for all; with
/// norms of queries and keys, and with a bias on everything that may have one.
fn shared_models() -> Vec<(&'static str, tempfile::TempDir)> {
    let mut configs: Vec<(&str, Value)> =
        random_configs().into_iter().filter(|(_, config)| config["num_attention_heads"] != 3).collect();
    let (_, plain) = random_configs().remove(2);
    let with = |more: Value| {
        let mut config = plain.clone();
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    configs
        .push(("biased llama of 64 with 4 heads", with(json!({"num_attention_heads": 4, "num_key_value_heads": 4}))));
    let normed = json!({"architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 24});
    configs.push(("qwen3 of 24", with(normed)));
    let written = |(name, config): (&'static str, Value)| {
        let directory = tempfile::tempdir().unwrap();
        write_random(directory.path(), &config);
        (name, directory)
    };
    configs.into_iter().map(written).collect()
}

/// The parts of a model on so many emulated GPUs.
fn parts(directory: &Path, ranks: usize) -> (Vec<Arc<Emulated>>, Vec<Arc<DeviceDecoder<Emulated>>>) {
    let architecture = Architecture::read(&directory.join("config.json")).unwrap();
    let weights = SafetensorsFiles::open(directory).unwrap();
    let devices = Emulated::ranks(MEMORY, ranks);
    let parts = DeviceDecoder::load_across(&devices, &architecture, &weights).unwrap();
    (devices, parts.into_iter().map(Arc::new).collect())
}

fn run_on(parts: &[Arc<DeviceDecoder<Emulated>>], prompts: &[Vec<u32>], slots: usize, blocks: usize) -> Run {
    let config = config_of(64, slots, blocks, parts[0].architecture());
    let mut ranks = Ranks::new(parts, &config).unwrap();
    let blocks = ranks.blocks();
    let run = generate(&mut ranks, blocks, prompts, 64, slots);
    Run { recordings: ranks.recordings(), ..run }
}

#[test]
fn devices_that_compute_a_model_together_generate_what_one_does() {
    for (name, directory) in shared_models() {
        let alone = Both::directory(name, directory.path());
        let prompts = prompts(6);
        for (ranks, slots, blocks) in [(2, 3, 7), (4, 9, 200)] {
            let (devices, parts) = parts(directory.path(), ranks);
            let with = format!("{name} on {ranks} devices with {slots} places and {blocks} blocks");
            let together = run_on(&parts, &prompts, slots, blocks);
            check(&alone, &prompts, &together.answers, &with);
            let one = run(&alone, &prompts, 64, slots, blocks);
            // One token that is as likely as another but for rounding changes all behind it, and `check` bounds that.
            let same = together.answers.iter().zip(&one.answers).filter(|(ours, theirs)| ours == theirs).count();
            println!("{with}: {same} of {} answers are those of one device", prompts.len());
            assert!(same * 3 >= prompts.len(), "{with}: {same} answers are those of one device");
            assert!(together.found > 0 && together.recordings > 0, "{with}: shares beginnings, and records");
            assert_eq!(together.started_over > 0, blocks < 100, "{with}: where blocks are scarce some start over");
            // Every device replays as often as the others.
            let replayed: Vec<usize> = devices.iter().map(|device| device.replayed.load(Ordering::SeqCst)).collect();
            assert!(replayed[0] > 0 && replayed.iter().all(|times| *times == replayed[0]), "{replayed:?}");
        }
    }
}

#[test]
fn a_shape_is_recorded_by_all_ranks_or_by_none() {
    let (_, directory) = shared_models().remove(1);
    let prompts = prompts(7);
    let (_devices, all) = parts(directory.path(), 2);
    let recorded = run_on(&all, &prompts, 9, 200);
    let (devices, one_forgets) = parts(directory.path(), 2);
    devices[1].forget();
    let plain = run_on(&one_forgets, &prompts, 9, 200);
    assert!(recorded.recordings > 0 && plain.recordings == 0);
    assert_eq!(recorded.answers, plain.answers);
}

/// The same weights, all made bf16 on the host.
struct Widened<'a, W>(&'a W);

impl<W: Weights> Weights for Widened<'_, W> {
    fn refuse(&self, reason: &str) -> Error {
        self.0.refuse(reason)
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        self.0.tensor(name, shape)
    }

    fn matrix(&self, name: &str, outputs: usize, inputs: usize) -> Result<Matrix, Error> {
        self.0.matrix(name, outputs, inputs)
    }

    fn stored(&self, name: &str) -> Option<Stored> {
        self.0.stored(name)
    }
}

/// How often blocks were widened on devices, and the logits that come of them.
fn widened(a: &Architecture, weights: &impl Weights, ranks: usize) -> (usize, Vec<f32>) {
    let devices = match ranks {
        1 => vec![Emulated::new(MEMORY)],
        ranks => Emulated::ranks(MEMORY, ranks),
    };
    let parts = DeviceDecoder::load_across(&devices, a, weights).unwrap();
    let parts: Vec<_> = parts.into_iter().map(Arc::new).collect();
    let times = devices.iter().map(|device| device.launched("dequantise")).sum();
    (times, logits_of(&parts, &[1, 17, 5, 40, 3, 3, 9]))
}

#[test]
fn quantised_weights_that_are_widened_on_a_device_are_those_of_the_host() {
    // Between them they have every kind of block; in one, rows of queries and keys are interleaved.
    for name in ["llama-gguf", "qwen3-gguf"] {
        let gguf = GgufFile::open(&reference(name).join(format!("{name}.gguf"))).unwrap();
        for ranks in [1, 2] {
            let a = gguf.architecture();
            let (none, by_host) = widened(a, &Widened(&gguf), ranks);
            let (some, by_device) = widened(a, &gguf, ranks);
            assert_eq!(none, 0);
            assert!(some > 0, "{name} on {ranks}");
            assert!(by_host.iter().all(|value| value.is_finite()) && by_host.iter().any(|value| *value != 0.0));
            assert_eq!(by_device, by_host, "{name} on {ranks}: bit for bit");
        }
    }
}

#[test]
fn blocks_that_a_cut_would_divide_are_widened_on_the_host() {
    let gguf = GgufFile::open(&reference("llama-gguf/llama-gguf.gguf")).unwrap();
    let a = gguf.architecture();
    let down = "model.layers.0.mlp.down_proj.weight";
    let kind = |piece| gguf.blocks(down, a.hidden, a.intermediate, piece).unwrap().map(|blocks| blocks.kind);
    assert_eq!(kind(a.intermediate), Some(BlockKind::Q4K));
    assert_eq!(kind(a.intermediate / 2), None, "128 weights of a block of 256");
    let output = gguf.blocks("lm_head.weight", a.vocabulary, a.hidden, 64).unwrap().unwrap();
    assert_eq!(output.kind, BlockKind::Q8_0);
    assert_eq!(output.bytes.len(), a.vocabulary * a.hidden / 32 * 34);
    let other = "model.layers.0.self_attn.v_proj.weight";
    assert_eq!(gguf.blocks(other, a.kv_heads * a.head_width, a.hidden, a.hidden).unwrap(), None, "it is Q6_K");
}

/// Embeddings in so many blocks that they go to a device in two pieces, and everything else in floats.
struct Large {
    blocks: Vec<u8>,
}

impl Weights for Large {
    fn refuse(&self, reason: &str) -> Error {
        panic!("{reason}")
    }

    fn tensor(&self, _: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        Ok(vec![1.0; shape.iter().product()])
    }

    fn matrix(&self, name: &str, outputs: usize, inputs: usize) -> Result<Matrix, Error> {
        if !name.contains("embed_tokens") {
            return Ok(Matrix::Float((0..outputs * inputs).map(|at| (at % 17) as f32 / 64.0 - 0.125).collect()));
        }
        let (blocks, _) = self.blocks.as_chunks::<34>();
        let widened = blocks.iter().flat_map(|block| {
            let scale = half::f16::from_le_bytes([block[0], block[1]]).to_f32();
            block[2..].iter().map(move |byte| scale * f32::from(*byte as i8))
        });
        Ok(Matrix::Float(widened.collect()))
    }

    fn blocks(&self, name: &str, _: usize, _: usize, _: usize) -> Result<Option<Blocks>, Error> {
        let blocks = || Blocks { kind: BlockKind::Q8_0, bytes: self.blocks.clone() };
        Ok(name.contains("embed_tokens").then(blocks))
    }

    fn stored(&self, _: &str) -> Option<Stored> {
        None
    }
}

#[test]
fn a_large_matrix_is_widened_piece_by_piece() {
    let a = Architecture::read(&reference("qwen3").join("config.json")).unwrap();
    let a = Architecture { vocabulary: 66_000, hidden: 128, layers: 1, ..a };
    assert!(a.tied_embeddings);
    let block = |at: usize| {
        let scale = half::f16::from_f32(0.001 + (at % 13) as f32 / 4_096.0).to_le_bytes();
        let values = (0..32).map(move |weight| (at * 31 + weight * 7) as u8);
        scale.into_iter().chain(values)
    };
    let large = Large { blocks: (0..a.vocabulary * a.hidden / 32).flat_map(block).collect() };
    assert!(large.blocks.len() > 8 << 20);
    let device = Emulated::new(MEMORY);
    let logits = |decoder| logits_of(&[Arc::new(decoder)], &[1, 65_999, 40_000]);
    let by_host = logits(DeviceDecoder::load(&device, &a, &Widened(&large)).unwrap());
    assert_eq!(device.launched("dequantise"), 0);
    let by_device = logits(DeviceDecoder::load(&device, &a, &large).unwrap());
    assert_eq!(device.launched("dequantise"), 2);
    assert!(by_host == by_device, "bit for bit");
    assert!(by_host.iter().any(|logit| *logit != by_host[0]), "and they differ among each other");
}

/// The logits behind a prompt.
fn logits_of(parts: &[Arc<DeviceDecoder<Emulated>>], prompt: &[u32]) -> Vec<f32> {
    let mut ranks = Ranks::new(parts, &config_of(64, 1, 8, parts[0].architecture())).unwrap();
    let chunk = Chunk { sequence: 0, start: 0, tokens: prompt.to_vec(), blocks: vec![0], yields: true };
    ranks.begin(Step { chunks: vec![chunk], wanted: vec![Wanted::Logits] }).unwrap();
    match ranks.finish(&mut |_| None).unwrap()[0] {
        Row::Logits(row) => row.to_vec(),
        Row::Token(_) => panic!("logits were wanted"),
    }
}

#[test]
fn what_a_model_takes_on_each_of_several_gpus_is_known_from_its_shape() {
    for (name, directory) in shared_models() {
        let whole = Architecture::read(&directory.path().join("config.json")).unwrap();
        for ranks in [2, 4] {
            let (devices, parts) = parts(directory.path(), ranks);
            let need = GpuNeed::of_each(&whole, &GpuLimits::default(), 16, ranks).unwrap();
            assert_eq!(need.weights_bytes, parts[0].bytes() as u64, "{name}");
            assert!(parts.iter().all(|part| part.bytes() <= parts[0].bytes()), "{name}: the first has the most");
            let before: Vec<usize> = devices.iter().map(|device| device.taken()).collect();
            let started = Ranks::new(&parts, &config_of(2_048, 16, 8, parts[0].architecture())).unwrap();
            for (device, before) in devices.iter().zip(before) {
                let taken = (device.taken() - before) as u64;
                assert!(taken < need.working_bytes + need.cache_bytes, "{name}: {taken} of {need:?}");
            }
            drop(started);
        }
    }
}

#[test]
fn the_device_with_the_least_room_says_how_many_blocks_all_have() {
    let (_, directory) = shared_models().remove(1);
    let (devices, parts) = parts(directory.path(), 2);
    let taken = Buffer::zeros(&devices[1], MEMORY / 2).unwrap();
    let a = parts[0].architecture();
    let block = 2 * a.layers * a.kv_heads * BLOCK * a.head_width * 2;
    let gpu = GpuLimits { step_tokens: 64, memory_part: 1.0, ..GpuLimits::default() };
    // So many that keys and values could fill the memory.
    let config = EngineConfig { slots: 2_000, gpu, ..EngineConfig::default() };
    let ranks = Ranks::new(&parts, &config).unwrap();
    assert!(ranks.blocks() * block <= MEMORY / 2, "{} blocks of {block} bytes", ranks.blocks());
    assert!(devices[1].taken() + block > MEMORY, "the second is full");
    drop((ranks, taken));
}

#[test]
fn a_model_that_cannot_be_cut_is_refused_with_the_numbers() {
    let refused = |more: Value, ranks: usize| {
        let (_, mut config) = random_configs().remove(1);
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let directory = tempfile::tempdir().unwrap();
        write_random(directory.path(), &config);
        let architecture = Architecture::read(&directory.path().join("config.json")).unwrap();
        let weights = SafetensorsFiles::open(directory.path()).unwrap();
        let devices = Emulated::ranks(MEMORY, ranks);
        Together::load(&devices, &architecture, &weights).expect_err("it cannot be cut").to_string()
    };
    assert_eq!(
        refused(json!({"num_attention_heads": 3, "num_key_value_heads": 3}), 2),
        "the GPU's kernels do not compute this model: 3 heads, 3 key-value heads and a feed-forward width of 96 cannot be \
         shared by 2 ranks"
    );
    assert_eq!(
        refused(json!({"intermediate_size": 72}), 2),
        "the GPU's kernels do not compute this model: shared by 2, intermediate_size is 36, no multiple of 8"
    );
    let refused = refused(json!({"num_attention_heads": 6, "num_key_value_heads": 3}), 2);
    assert!(refused.contains("6 heads, 3 key-value heads"), "{refused}");
}

#[test]
fn what_a_model_takes_on_a_gpu_is_known_from_its_shape() {
    for both in models() {
        let a = both.device.architecture();
        let need = GpuNeed::of_each(a, &GpuLimits::default(), 16, 1).unwrap();
        assert_eq!(need.weights_bytes, both.device.bytes() as u64, "{}", both.name);
        let before = both.emulated.taken();
        let config = EngineConfig { slots: 16, ..config(2_048, 16, 8, &both) };
        let started = Arc::clone(&both.device).start(&config).unwrap();
        let taken = (both.emulated.taken() - before) as u64;
        assert_eq!(started.blocks, 8);
        assert!(taken < need.working_bytes + need.cache_bytes, "{}: {taken} of {need:?}", both.name);
    }
}

#[test]
fn a_model_that_does_not_fit_is_refused_and_leaves_nothing_behind() {
    let directory = reference("qwen3");
    let architecture = Architecture::read(&directory.join("config.json")).unwrap();
    let weights = SafetensorsFiles::open(&directory).unwrap();
    let small = Emulated::new(60_000);
    match DeviceDecoder::load(&small, &architecture, &weights) {
        Err(LoadError::Device(Fault::Memory { wanted, free })) => assert!(wanted > free, "{wanted} {free}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(small.taken(), 0);
    // The weights fit, and keys and values do not.
    let both = Both::of("qwen3", &architecture, &weights);
    let config =
        EngineConfig { gpu: GpuLimits { memory_part: 1e-9, ..GpuLimits::default() }, ..EngineConfig::default() };
    let before = both.emulated.taken();
    assert!(matches!(Steps::new(Arc::clone(&both.device), &config), Err(Fault::Memory { .. })));
    assert_eq!(both.emulated.taken(), before);
    // Widths that the kernels do not compute are refused by name.
    let odd = Architecture { head_width: 10, ..architecture };
    let refused = DeviceDecoder::load(&small, &odd, &weights).unwrap_err().to_string();
    assert!(refused.contains("the width of a head is 10, no multiple of 8"), "{refused}");
}

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny")
}

/// The tiny model behind its engine, on the emulated GPU.
fn engine(emulated: &Arc<Emulated>, slots: usize) -> Engine {
    engine_that_rests(emulated, slots, EngineConfig::default().cache_idle)
}

/// The same, which rests after so long without work.
fn engine_that_rests(emulated: &Arc<Emulated>, slots: usize, cache_idle: Duration) -> Engine {
    let model = Model::load_on(&tiny(), None, &Progress::default(), emulated).unwrap();
    let gpu = GpuLimits { step_tokens: 256, ..GpuLimits::default() };
    let config = EngineConfig { slots, gpu, cache_idle, ..EngineConfig::default() };
    Engine::start(Arc::new(model), Arc::new(Team::alone()), &config).unwrap()
}

fn host_engine() -> Engine {
    let model = Model::load(&tiny()).unwrap();
    Engine::start(Arc::new(model), Arc::new(Team::alone()), &EngineConfig::default()).unwrap()
}

fn ask(text: &str) -> Request {
    Request { messages: vec![json!({"role": "user", "content": text})], tokens_max: Some(60), ..Request::default() }
}

fn end(mut running: Running) -> Result<(Vec<u32>, Outcome), String> {
    let mut ids = Vec::new();
    loop {
        match running.events.blocking_recv().expect("an end is announced") {
            Event::Token { id, .. } => ids.push(id),
            Event::Finished(outcome) => return Ok((ids, *outcome)),
            Event::Failed(why) | Event::Refused(why) => return Err(why),
        }
    }
}

fn tools() -> Vec<Value> {
    vec![json!({"type": "function", "function": {"name": "search_code", "description": "", "parameters": {
        "type": "object", "properties": {"query": {"type": "string"}, "path": {"type": "string"}},
        "required": ["query"], "additionalProperties": false}}})]
}

fn schema() -> ResponseFormat {
    let schema = json!({"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"],
        "additionalProperties": false});
    ResponseFormat::JsonSchema { schema }
}

/// The tiny model behind its engine, on several emulated GPUs.
fn engine_on(devices: &[Arc<Emulated>], slots: usize) -> Engine {
    let model = Model::load_across(&tiny(), None, &Progress::default(), devices).unwrap();
    let gpu = GpuLimits { step_tokens: 256, ..GpuLimits::default() };
    let config = EngineConfig { slots, gpu, ..EngineConfig::default() };
    Engine::start(Arc::new(model), Arc::new(Team::alone()), &config).unwrap()
}

/// Everything that can be asked of an engine, each in its own way.
fn requests() -> Vec<Request> {
    let sampled = Sampling { temperature: 0.7, top_k: 20, top_p: 0.9, seed: 5, ..Sampling::default() };
    vec![
        ask("hello"),
        // Its calls are bound, once they begin.
        Request { tools: tools(), ..ask("find the function that parses the configuration") },
        Request { response_format: Some(schema()), ..ask("hello") },
        Request { stop: vec!["e code in t".to_owned()], ..ask("hello") },
        Request { sampling: Sampling { logprobs: Some(2), ..Sampling::default() }, ..ask("hello") },
        Request { sampling: Sampling { repetition_penalty: 1.1, ..Sampling::default() }, ..ask("hello") },
        Request { tokens_max: Some(3), ..ask("hello") },
        Request { alternatives: 2, ..ask("hello") },
        // One that is drawn: the same logits but for rounding, and the same random numbers.
        Request { sampling: sampled, ..ask("hello") },
    ]
}

#[test]
fn the_engine_says_the_same_on_a_gpu_as_on_the_cpu() {
    let emulated = Emulated::new(MEMORY);
    says_the_same(&engine(&emulated, 8), &requests());
    assert!(emulated.replayed.load(Ordering::SeqCst) > 10, "continued answers are replayed");
}

#[test]
fn the_engine_says_the_same_on_several_gpus_as_on_the_cpu() {
    let all = requests();
    // One within a grammar, one that is picked on the host, and one that is drawn.
    let some: Vec<Request> = [2, 4, 8].map(|which| all[which].clone()).into();
    for (ranks, requests) in [(2, all), (4, some)] {
        let devices = Emulated::ranks(MEMORY, ranks);
        says_the_same(&engine_on(&devices, 8), &requests);
        let replayed = devices.iter().map(|device| device.replayed.load(Ordering::SeqCst));
        assert!(replayed.min() > Some(10), "continued answers are replayed on all");
    }
}

fn says_the_same(gpu: &Engine, requests: &[Request]) {
    let cpu = host_engine();
    let running: Vec<Running> = requests.iter().map(|request| gpu.submit(request.clone()).unwrap()).collect();
    for (request, running) in requests.iter().zip(running) {
        let (ids, ours) = end(running).unwrap();
        let (theirs_ids, theirs) = end(cpu.submit(request.clone()).unwrap()).unwrap();
        assert_eq!((&ours.text, &ours.tool_calls, ours.reason), (&theirs.text, &theirs.tool_calls, theirs.reason));
        assert_eq!(ids, theirs_ids, "{}", ours.text);
        assert_eq!(ours.logprobs.len(), theirs.logprobs.len());
        assert_eq!(ours.alternatives.len(), theirs.alternatives.len());
    }
    assert_eq!(gpu.free_slots(), gpu.slots());
    let left = gpu.hand_over().expect("it runs");
    assert_eq!(left.tokens(), 0, "what lies on a GPU is not kept");
}

#[test]
fn a_lost_gpu_fails_what_is_under_way_and_says_why() {
    let emulated = Emulated::new(MEMORY);
    let gpu = engine(&emulated, 4);
    let lost = gpu.lost();
    assert_eq!(*lost.borrow(), None);
    emulated.lose_after(300);
    let running: Vec<Running> = (0..6).map(|_| gpu.submit(ask("hello")).unwrap()).collect();
    for running in running {
        let why = end(running).expect_err("it is lost");
        assert_eq!(why, "the GPU was lost: it fell off the bus");
    }
    assert_eq!(lost.borrow().as_deref(), Some("the GPU was lost: it fell off the bus"));
    assert!(gpu.submit(ask("hello")).is_err(), "it has ended");
    assert!(gpu.hand_over().is_none());
}

#[test]
fn a_lost_gpu_of_several_ends_them_all_and_says_which_it_was() {
    for (lost, ranks) in [(0, 2), (1, 2), (3, 4)] {
        let devices = Emulated::ranks(MEMORY, ranks);
        let model = Arc::new(Model::load_across(&tiny(), None, &Progress::default(), &devices).unwrap());
        let device = Arc::clone(model.device.as_ref().unwrap());
        let config = EngineConfig { slots: 4, ..EngineConfig::default() };
        let gpu = Engine::start(model, Arc::new(Team::alone()), &config).unwrap();
        let heard = gpu.lost();
        devices[lost].lose_after(300);
        let told = format!(
            "the GPU was lost: emulated GPU {lost}, one of {ranks} that compute the model: it fell off the bus"
        );
        let running: Vec<Running> = (0..6).map(|_| gpu.submit(ask("hello")).unwrap()).collect();
        for running in running {
            assert_eq!(end(running).expect_err("it is lost"), told);
        }
        assert_eq!(heard.borrow().as_deref(), Some(told.as_str()));
        // The others are as good as before.
        assert_eq!(device.lost(), [lost]);
        assert!(gpu.submit(ask("hello")).is_err(), "it has ended");
        assert!(gpu.hand_over().is_none());
    }
}

#[test]
fn those_who_leave_leave_nothing_behind() {
    let emulated = Emulated::new(MEMORY);
    let gpu = engine(&emulated, 3);
    for round in 0..4 {
        let mut running: Vec<Running> = (0..6).map(|at| gpu.submit(ask(&format!("hello {at}"))).unwrap()).collect();
        // One is answered, the others leave in the middle of it.
        let kept = running.remove(round);
        let mut first = running.remove(0);
        assert!(first.events.blocking_recv().is_some());
        drop((first, running));
        assert!(end(kept).is_ok());
    }
    // Whoever asks behind those who leave is answered when they are gone.
    assert!(end(gpu.submit(ask("hello")).unwrap()).is_ok());
    assert_eq!(gpu.free_slots(), gpu.slots());
    drop(gpu.hand_over());
}

#[test]
fn what_was_computed_of_a_prompt_outlives_a_rest_that_gives_nothing_back() {
    let emulated = Emulated::new(MEMORY);
    let gpu = engine_that_rests(&emulated, 1, Duration::ZERO);
    let ask = || ask(&"a prompt of several blocks, ".repeat(12));
    let (first, outcome) = end(gpu.submit(ask()).unwrap()).unwrap();
    assert_eq!(outcome.cached_tokens, 0);
    // It rests as soon as it is idle, which it is before long.
    for _ in 0..3 {
        let (again, outcome) = end(gpu.submit(ask()).unwrap()).unwrap();
        assert!(outcome.cached_tokens >= outcome.prompt_tokens / 2, "{outcome:?}");
        assert_eq!(again, first);
    }
    drop(gpu.hand_over());
}

#[test]
fn tables_of_blocks_are_as_wide_as_they_must_be() {
    // The window of these models is as long as the narrowest table; a longer one is only a matter of the configuration.
    let directory = tempfile::tempdir().unwrap();
    let (_, mut config) = random_configs().remove(1);
    config["max_position_embeddings"] = json!(1_024);
    write_random(directory.path(), &config);
    let both = Both::directory("a long window", directory.path());
    let long: Vec<Vec<u32>> = vec![(0..250).map(|at| (at * 29 + 3) % 131).collect(), vec![5; 3]];
    let ran = run(&both, &long, 512, 4, 64);
    check(&both, &long, &ran.answers, "a long and a short context");
    assert!(ran.recordings >= 2, "one for each width: {}", ran.recordings);
}
