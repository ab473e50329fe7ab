//! Measures the decoder on a GPU, and holds it against the CPU's: one JSON line for each question. `deploy/bench/run gpu` asks
//! them all.
//!
//! `gpu_speed devices` · `gpu_speed ceilings` · `gpu_speed check [GPUS]` ·
//! `gpu_speed decode SHAPE BATCH CONTEXT STEPS [plain] [blas] [on GPUS]` · `gpu_speed prefill SHAPE TOKENS` ·
//! `gpu_speed compare DIRECTORY REFERENCE` · `gpu_speed together DIRECTORY REQUESTS IN OUT`
//!
//! SHAPE is `0.6b` or `8b`: random weights in the shapes of Qwen3's models. GPUS compute it together (1). Exit code 3: there
//! is no GPU to measure.

use std::{
    error::Error,
    path::Path,
    process::ExitCode,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use inference_worker::{
    architecture::{Architecture, Rope, RopeScaling},
    compute::{Compute, Row, Step, Wanted},
    cuda::{
        Limits as GpuLimits,
        decoder::Decoder as DeviceDecoder,
        device::{Buffer, Device, Product},
        driver::{self, Cuda},
        ranks::Ranks,
        steps::Steps,
    },
    engine::{Engine, EngineConfig, Event, Request, Running},
    gpus::Gpus,
    kernels::{
        matrix::{Form, Matrix, SixteenKind},
        team::Team,
    },
    model::{Batch, Decoder, Scratch},
    model_directory::{self, Model},
    sample::Sampling,
    scheduler::{Limits, Scheduler},
    weights::{Progress, SafetensorsFiles, Stored, Weights},
};
use schemas::chat::Priority;
use serde_json::{Value, json};

type Failure = Box<dyn Error>;

/// No GPU, or none that can be used.
const ABSENT: u8 = 3;
/// How far a logit may be off, as a part of the largest.
const TOLERANCE: f32 = 0.03;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Err(why) = driver::find() {
        eprintln!("no GPU is measured: {why}");
        return ExitCode::from(ABSENT);
    }
    match answer(&arguments) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("gpu_speed {}: {error}", arguments.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn answer(arguments: &[String]) -> Result<Value, Failure> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["devices"] => devices(),
        ["ceilings"] => ceilings(),
        ["check"] => check(1),
        ["check", gpus] => check(gpus.parse()?),
        ["decode", shape, batch, context, steps, without @ .., "on", gpus] => {
            decode(&named(shape)?, batch.parse()?, context.parse()?, steps.parse()?, &limits(without), gpus.parse()?)
        }
        ["decode", shape, batch, context, steps, without @ ..] => {
            decode(&named(shape)?, batch.parse()?, context.parse()?, steps.parse()?, &limits(without), 1)
        }
        ["prefill", shape, tokens] => prefill(&named(shape)?, tokens.parse()?),
        ["compare", directory, reference] => compare(Path::new(directory), Path::new(reference)),
        ["together", directory, requests, tokens_in, tokens_out] => {
            together(Path::new(directory), requests.parse()?, tokens_in.parse()?, tokens_out.parse()?)
        }
        _ => Err("ask devices, ceilings, check, decode, prefill, compare or together; the source says how".into()),
    }
}

fn devices() -> Result<Value, Failure> {
    let one = |gpu: driver::Found| {
        json!({"id": gpu.id, "name": gpu.name, "memory_bytes": gpu.memory,
            "capability": format!("{}.{}", gpu.capability.0, gpu.capability.1)})
    };
    Ok(driver::find()?.into_iter().map(one).collect())
}

fn limits(without: &[&str]) -> GpuLimits {
    let (graphs, skinny) = (!without.contains(&"plain"), !without.contains(&"blas"));
    GpuLimits { graphs, skinny, ..GpuLimits::default() }
}

/// The first so many.
fn open_together(gpus: usize) -> Result<Vec<Arc<Cuda>>, Failure> {
    let found: Vec<u32> = driver::find()?.iter().map(|gpu| gpu.id).take(gpus).collect();
    if found.len() < gpus {
        return Err(format!("there are {} GPUs, and {gpus} are wanted", found.len()).into());
    }
    Ok(Cuda::open_together(&found)?)
}

/// What computes on them.
fn ranks(
    gpus: &[Arc<Cuda>],
    a: &Architecture,
    config: impl FnOnce(&Architecture) -> EngineConfig,
) -> Result<(Ranks<Cuda>, usize), Failure> {
    let parts: Vec<_> = DeviceDecoder::load_across(gpus, a, &Random)?.into_iter().map(Arc::new).collect();
    let config = config(parts[0].architecture());
    Ok((Ranks::new(&parts, &config)?, parts[0].bytes()))
}

fn open() -> Result<Arc<Cuda>, Failure> {
    Ok(Arc::new(Cuda::open(driver::find()?[0].id)?))
}

/// What the card can do at most: bytes a second of a copy, read and written, and products a second.
fn ceilings() -> Result<Value, Failure> {
    const COPIED: usize = 4 << 30;
    const SIDE: usize = 8_192;
    let gpu = open()?;
    let (from, to) = (Buffer::zeros(&gpu, COPIED)?, Buffer::zeros(&gpu, COPIED)?);
    let copy = best(&gpu, 10, || Ok(gpu.copy(from.address(), to.address(), COPIED)?))?;
    let product = Product {
        weights: from.address(),
        inputs: from.at(2 * SIDE * SIDE),
        outputs: to.address(),
        rows: SIDE,
        width: SIDE,
        depth: SIDE,
        wide: false,
    };
    let multiply = best(&gpu, 10, || Ok(gpu.multiply(&product)?))?;
    Ok(json!({
        "copy_bytes_per_second": 2.0 * COPIED as f64 / copy.as_secs_f64(),
        "flops_per_second": 2.0 * (SIDE as f64).powi(3) / multiply.as_secs_f64(),
    }))
}

/// The shortest of several runs, each of several rounds.
fn best(gpu: &Arc<Cuda>, runs: usize, mut round: impl FnMut() -> Result<(), Failure>) -> Result<Duration, Failure> {
    const ROUNDS: u32 = 8;
    let mut shortest = Duration::MAX;
    for _ in 0..=runs {
        gpu.synchronise()?;
        let began = now();
        for _ in 0..ROUNDS {
            round()?;
        }
        gpu.synchronise()?;
        shortest = shortest.min((now() - began) / ROUNDS);
    }
    Ok(shortest)
}

/// Random weights that are made when they are asked for.
struct Random;

impl Weights for Random {
    fn refuse(&self, reason: &str) -> model_directory::Error {
        model_directory::Error::Refused { path: "random weights".into(), reason: reason.to_owned() }
    }

    fn tensor(&self, _: &str, shape: &[usize]) -> Result<Vec<f32>, model_directory::Error> {
        Ok(vec![1.0; shape.iter().product()])
    }

    fn matrix(&self, name: &str, outputs: usize, inputs: usize) -> Result<Matrix, model_directory::Error> {
        // A prime number of values over and over: rows differ, and eight billion are there in seconds.
        const PERIOD: usize = 65_521;
        let mut seed = name.bytes().fold(1_u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let scale = 1.7 / (inputs as f32).sqrt();
        let values: Vec<u16> = (0..PERIOD)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                half::bf16::from_f32(((seed >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale).to_bits()
            })
            .collect();
        let mut bits = Vec::with_capacity(outputs * inputs);
        while bits.len() < outputs * inputs {
            bits.extend_from_slice(&values[..PERIOD.min(outputs * inputs - bits.len())]);
        }
        Ok(Matrix::Sixteen(SixteenKind::Brain, bits))
    }

    fn stored(&self, _: &str) -> Option<Stored> {
        Some(Stored { form: Form::Sixteen(SixteenKind::Brain), bytes: 0 })
    }
}

fn qwen3(layers: usize, hidden: usize, heads: usize, intermediate: usize, tied_embeddings: bool) -> Architecture {
    Architecture {
        vocabulary: 151_936,
        hidden,
        layers,
        heads,
        kv_heads: 8,
        head_width: 128,
        intermediate,
        norm_epsilon: 1e-6,
        rope: Rope { theta: 1e6, scaling: RopeScaling::None },
        window: 40_960,
        sliding_window: None,
        tied_embeddings,
        query_key_norm: true,
        qkv_bias: false,
        output_bias: false,
    }
}

fn named(shape: &str) -> Result<Architecture, Failure> {
    match shape {
        "0.6b" => Ok(qwen3(28, 1_024, 16, 3_072, true)),
        "8b" => Ok(qwen3(36, 4_096, 32, 12_288, false)),
        other => Err(format!("{other} is no shape; there are 0.6b and 8b").into()),
    }
}

/// Shapes with everything a model may have, small enough for the CPU.
fn small_shapes() -> Vec<(&'static str, Architecture)> {
    let plain = Architecture { vocabulary: 1_000, window: 2_048, ..qwen3(2, 256, 4, 512, true) };
    let of = |width, heads, kv_heads| Architecture { head_width: width, heads, kv_heads, ..plain.clone() };
    vec![
        ("heads of 128, 4 to one", Architecture { query_key_norm: true, ..of(128, 8, 2) }),
        ("heads of 128, 16 to one", Architecture { query_key_norm: false, ..of(128, 16, 1) }),
        ("heads of 64, biased", Architecture { qkv_bias: true, output_bias: true, ..of(64, 6, 6) }),
        ("heads of 64, a window of 100", Architecture { sliding_window: Some(100), ..of(64, 12, 4) }),
        ("heads of 80", Architecture { tied_embeddings: false, ..of(80, 4, 2) }),
    ]
}

/// Logits of ragged prompts and of what follows them, against the CPU's.
fn check(gpus: usize) -> Result<Value, Failure> {
    let opened = open_together(gpus)?;
    let mut found = Vec::new();
    let mut worst = 0.0_f32;
    for (name, a) in small_shapes() {
        let host = Decoder::load(&a, &Random)?;
        let prompts: Vec<Vec<u32>> = [1, 2, 15, 16, 17, 60, 129, 300, 1_100]
            .map(|length| (0..length).map(|at| (at * 37 + length) % 1_000).collect())
            .into();
        let config = EngineConfig { slots: prompts.len(), ..EngineConfig::default() };
        let (mut steps, _) = ranks(&opened, &a, |_| config)?;
        let mut scheduler = Scheduler::new(Limits { step_tokens: 700, running: prompts.len() }, steps.blocks());
        for (id, prompt) in prompts.iter().enumerate() {
            scheduler.add(id as u64, 0, Priority::Normal, prompt.clone());
        }
        let (mut known, mut off) = (prompts.clone(), 0.0_f32);
        for _ in 0..8 {
            let chunks = scheduler.schedule();
            let ids: Vec<u64> = chunks.iter().filter(|chunk| chunk.yields).map(|chunk| chunk.sequence).collect();
            steps.begin(Step { wanted: vec![Wanted::Logits; ids.len()], chunks })?;
            for (id, row) in ids.into_iter().zip(steps.finish(&mut |_| None)?) {
                let Row::Logits(row) = row else { return Err("logits were wanted".into()) };
                let wanted = host_logits(&host, &known[id as usize]);
                off = off.max(difference(row, &wanted));
                let token = Sampling::default().pick(&wanted, 0).ok_or("no logit is a number")?;
                known[id as usize].push(token);
                scheduler.complete(id, Some(token));
            }
        }
        worst = worst.max(off);
        found.push(json!({"shape": name, "off": off}));
    }
    Ok(json!({"gpus": gpus, "shapes": found, "worst": worst, "tolerance": TOLERANCE, "ok": worst <= TOLERANCE}))
}

/// The CPU's logits behind these tokens.
fn host_logits(decoder: &Decoder, tokens: &[u32]) -> Vec<f32> {
    let blocks: Vec<u32> = (0..tokens.len().div_ceil(inference_worker::kv::BLOCK) as u32).collect();
    let batch = Batch {
        positions: (0..tokens.len()).collect(),
        sequences: vec![0; tokens.len()],
        tables: vec![&blocks],
        outputs: vec![tokens.len() - 1],
        tokens: tokens.to_vec(),
    };
    let (mut cache, mut scratch) = (decoder.cache(blocks.len()), Scratch::default());
    decoder.forward(&Team::alone(), &batch, &mut cache, &mut scratch).to_vec()
}

/// The largest difference, as a part of the largest logit.
fn difference(ours: &[f32], theirs: &[f32]) -> f32 {
    let largest = theirs.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    ours.iter().zip(theirs).fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs())) / largest
}

/// Steps that continue as many sequences, each with so many tokens before it. Bytes and products are the first GPU's.
fn decode(
    a: &Architecture,
    batch: usize,
    context: usize,
    count: usize,
    limits: &GpuLimits,
    gpus: usize,
) -> Result<Value, Failure> {
    let opened = open_together(gpus)?;
    let blocks = batch * ((context + count + 40) / inference_worker::kv::BLOCK + 2);
    let mut block = 0;
    let (mut steps, bytes) = ranks(&opened, a, |part| {
        block = inference_worker::cuda::decoder::block_bytes(part);
        let gpu = GpuLimits { cache_bytes_max: Some(blocks * block), memory_part: 1.0, ..*limits };
        EngineConfig { slots: batch, gpu, ..EngineConfig::default() }
    })?;
    // Of an embedding that is not the output layer, too, a step reads a few rows.
    let weights = bytes - if a.tied_embeddings { 0 } else { a.vocabulary * a.hidden * 2 };
    let mut scheduler = Scheduler::new(Limits { step_tokens: limits.step_tokens, running: batch }, steps.blocks());
    for id in 0..batch as u32 {
        let prompt = (0..context as u32).map(|at| (at * 131 + id * 7_919) % a.vocabulary as u32).collect();
        scheduler.add(u64::from(id), 0, Priority::Normal, prompt);
    }
    // One step behind the other, as an engine asks them.
    let mut under_way: Option<Vec<u64>> = None;
    let mut advance = |steps: &mut Ranks<Cuda>, scheduler: &mut Scheduler| -> Result<bool, Failure> {
        let chunks = scheduler.schedule();
        let continues = chunks.len() == batch && chunks.iter().all(|chunk| chunk.tokens.len() == 1);
        let ids: Vec<u64> = chunks.iter().filter(|chunk| chunk.yields).map(|chunk| chunk.sequence).collect();
        steps.begin(Step { chunks, wanted: vec![Wanted::Token(Sampling::default()); ids.len()] })?;
        ids.iter().for_each(|id| scheduler.promise(*id));
        if let Some(older) = under_way.replace(ids) {
            for (id, row) in older.into_iter().zip(steps.finish(&mut |_| None)?) {
                let Row::Token(token) = row else { return Err("tokens were wanted".into()) };
                scheduler.complete(id, token);
            }
        }
        Ok(continues)
    };
    while !advance(&mut steps, &mut scheduler)? {}
    // Recorded, and warm.
    for _ in 0..16 {
        advance(&mut steps, &mut scheduler)?;
    }
    let began = now();
    for _ in 0..count {
        advance(&mut steps, &mut scheduler)?;
    }
    let step = (now() - began) / count as u32;
    let cache = batch * (context + count / 2) * block / inference_worker::kv::BLOCK;
    Ok(json!({
        "batch": batch, "context": context, "gpus": gpus, "graphs": limits.graphs, "skinny": limits.skinny, "recordings": steps.recordings(),
        "step_ms": step.as_secs_f64() * 1e3, "tokens_per_second": batch as f64 / step.as_secs_f64(),
        // What a step reads at least.
        "weights_bytes": weights, "cache_bytes": cache,
        "flops": 2.0 * (weights as f64 / 2.0) * batch as f64,
    }))
}

/// One prompt, in steps of the default size.
fn prefill(a: &Architecture, tokens: usize) -> Result<Value, Failure> {
    let gpu = open()?;
    let decoder = Arc::new(DeviceDecoder::load(&gpu, a, &Random)?);
    let config = EngineConfig { slots: 8, ..EngineConfig::default() };
    let mut steps = Steps::new(decoder, &config)?;
    let mut times = Vec::new();
    for round in 0..4_u32 {
        let limits = Limits { step_tokens: config.gpu.step_tokens, running: 1 };
        let mut scheduler = Scheduler::new(limits, steps.blocks());
        let prompt = (0..tokens as u32).map(|at| (at * 131 + round) % a.vocabulary as u32).collect();
        scheduler.add(0, 0, Priority::Normal, prompt);
        gpu.synchronise()?;
        let began = now();
        loop {
            let chunks = scheduler.schedule();
            let yields = chunks.iter().any(|chunk| chunk.yields);
            let wanted = if yields { vec![Wanted::Token(Sampling::default())] } else { Vec::new() };
            steps.begin(Step { chunks, wanted })?;
            steps.finish(&mut |_| None)?;
            if yields {
                break;
            }
        }
        times.push(now() - began);
    }
    let shortest = times.into_iter().min().unwrap_or_default().as_secs_f64();
    Ok(json!({"tokens": tokens, "seconds": shortest, "tokens_per_second": tokens as f64 / shortest}))
}

/// Logits and greedy tokens against what transformers made of the same files.
fn compare(directory: &Path, reference: &Path) -> Result<Value, Failure> {
    let reference: Value = serde_json::from_slice(&std::fs::read(reference)?)?;
    let a = Architecture::read(&directory.join("config.json"))?;
    let gpu = open()?;
    let decoder = Arc::new(DeviceDecoder::load(&gpu, &a, &SafetensorsFiles::open(directory)?)?);
    let mut steps = Steps::new(decoder, &EngineConfig { slots: 8, ..EngineConfig::default() })?;
    let (mut worst, mut same, mut all) = (0.0_f32, 0, 0);
    for case in reference["cases"].as_array().ok_or("the reference has no cases")? {
        let prompt: Vec<u32> = serde_json::from_value(case["prompt"].clone())?;
        let greedy: Vec<u32> = serde_json::from_value(case["greedy"].clone())?;
        let wanted: Vec<Vec<f32>> = serde_json::from_value(case["logits"].clone())?;
        let mut scheduler = Scheduler::new(Limits { step_tokens: 2_048, running: 1 }, steps.blocks());
        scheduler.add(0, 0, Priority::Normal, prompt);
        // What transformers chose is the input of what follows, so that one difference does not become many.
        for (token, wanted) in greedy.iter().zip(wanted.iter().map(Some).chain(std::iter::repeat(None))) {
            let chunks = scheduler.schedule();
            steps.begin(Step { chunks, wanted: vec![Wanted::Logits] })?;
            let rows = steps.finish(&mut |_| None)?;
            let Some(Row::Logits(row)) = rows.first() else { return Err("logits were wanted".into()) };
            if let Some(wanted) = wanted {
                worst = worst.max(difference(row, wanted));
            }
            same += usize::from(Sampling::default().pick(row, 0) == Some(*token));
            all += 1;
            scheduler.complete(0, Some(*token));
        }
    }
    Ok(
        json!({"worst": worst, "same": same, "of": all, "tolerance": TOLERANCE, "ok": worst <= TOLERANCE && same * 100 >= all * 98}),
    )
}

/// Requests at once through the engine, and how busy the card was meanwhile.
fn together(directory: &Path, requests: usize, tokens_in: usize, tokens_out: usize) -> Result<Value, Failure> {
    let gpu = open()?;
    let model = Model::load_on(directory, None, &Progress::default(), &gpu)?;
    let config = EngineConfig { slots: requests, ..EngineConfig::default() };
    let engine = Engine::start(Arc::new(model), Arc::new(Team::alone()), &config)?;
    let ask = |round: usize, count: usize| -> Result<Vec<Running>, Failure> {
        let running = (0..count).map(|at| {
            let words = (0..tokens_in).map(|word| format!(" {}", letters(word * 7 + at * 131 + round * 7_919)));
            let messages = vec![json!({"role": "user", "content": words.collect::<String>()})];
            Ok(engine.submit(Request { messages, tokens_max: Some(tokens_out), ..Request::default() })?)
        });
        running.collect()
    };
    // Everything is recorded once.
    ask(0, requests)?.into_iter().try_for_each(|running| finish(running).map(drop))?;
    let (stop, stopped) = mpsc::channel::<()>();
    let sampling = std::thread::spawn(move || utilisation(&stopped));
    let began = now();
    let (mut prompts, mut tokens, mut first) = (0, 0, Vec::new());
    for running in ask(1, requests)? {
        let outcome = finish(running)?;
        prompts += outcome.0;
        tokens += outcome.1;
        first.push(outcome.2);
    }
    let seconds = (now() - began).as_secs_f64();
    drop(stop);
    let busy = sampling.join().map_err(|_| "measuring the card crashed")?;
    first.sort_unstable();
    Ok(json!({
        "requests": requests, "prompt_tokens": prompts, "tokens": tokens, "seconds": seconds,
        "tokens_per_second": tokens as f64 / seconds, "utilisation": busy,
        "first_token_ms_p50": first[first.len() / 2].as_secs_f64() * 1e3,
        "first_token_ms_p95": first[first.len() * 95 / 100].as_secs_f64() * 1e3,
    }))
}

fn letters(number: usize) -> String {
    (0..3).map(|at| char::from(b'a' + (number / 26_usize.pow(at) % 26) as u8)).collect()
}

fn finish(mut running: Running) -> Result<(usize, usize, Duration), Failure> {
    while let Some(event) = running.events.blocking_recv() {
        match event {
            Event::Finished(outcome) => {
                return Ok((outcome.prompt_tokens, outcome.completion_tokens, outcome.first_token));
            }
            Event::Failed(why) | Event::Refused(why) => return Err(why.into()),
            Event::Token { .. } => {}
        }
    }
    Err("the engine ended without an answer".into())
}

/// The part of the time in which the first card computed, until the other end is dropped; none where nobody says.
fn utilisation(stopped: &mpsc::Receiver<()>) -> Option<f64> {
    let gpus = Gpus::open().ok()?;
    let mut samples = Vec::new();
    while stopped.recv_timeout(Duration::from_millis(200)) == Err(mpsc::RecvTimeoutError::Timeout) {
        samples.extend(gpus.sample().first().and_then(|gpu| gpu.utilization));
    }
    (!samples.is_empty()).then(|| samples.iter().sum::<f64>() / samples.len() as f64)
}

#[expect(clippy::disallowed_methods, reason = "measures")]
fn now() -> Instant {
    Instant::now()
}
