//! Files that were cut off, or changed byte by byte: each is refused with its name, or is a model; none takes the process
//! down or makes it reserve memory that the file does not hold.

use std::path::{Path, PathBuf};

use inference_worker::{
    architecture::Architecture,
    kernels::team::Team,
    kv::BLOCK,
    model::{Batch, Decoder, Scratch},
    model_directory::Model,
    tokenizer::Tokenizer,
    weights::SafetensorsFiles,
};
use proptest::prelude::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Memory a test may reserve beyond what it has; the files here are smaller than one megabyte.
const MEMORY_MAX: u64 = 1 << 30;
/// Cuts at places drawn from this seed.
const SEED: u64 = 20;
const CUTS: usize = 200;

/// Whoever reserves gigabytes because a damaged file says so ends the test.
fn bound_memory() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let kib: u64 = size.trim().trim_end_matches(" kB").parse().unwrap();
    let limits = getrlimit(Resource::As);
    setrlimit(Resource::As, Rlimit { current: Some(kib * 1024 + MEMORY_MAX), ..limits }).unwrap();
}

fn reference(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(path)
}

/// A copy of a directory of files.
fn copy_of(name: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(reference(name)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
    }
    directory
}

/// Numbers from a seed, below a bound.
fn drawn(bound: usize) -> impl Iterator<Item = usize> {
    let mut state = SEED;
    std::iter::from_fn(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Some((state >> 33) as usize % bound)
    })
}

/// Shortens a file to each of these lengths, the longest first.
fn cut(path: &Path, lengths: impl Iterator<Item = usize>, mut with: impl FnMut(usize)) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    let mut lengths: Vec<usize> = lengths.collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    for length in lengths {
        file.set_len(length as u64).unwrap();
        with(length);
    }
}

fn safetensors(directory: &Path) -> Result<Decoder, String> {
    let architecture = Architecture::read(&directory.join("config.json")).map_err(|error| error.to_string())?;
    let files = SafetensorsFiles::open(directory).map_err(|error| error.to_string())?;
    Decoder::load(&architecture, &files).map_err(|error| error.to_string())
}

fn gguf(path: &Path) -> Result<Model, String> {
    Model::load(path).map_err(|error| error.to_string())
}

/// Three tokens through what was loaded.
fn compute(decoder: &Decoder) {
    let tokens: Vec<u32> = (0..3.min(decoder.architecture().vocabulary as u32)).collect();
    let blocks: Vec<u32> = (0..tokens.len().div_ceil(BLOCK) as u32).collect();
    let batch = Batch {
        positions: (0..tokens.len()).collect(),
        sequences: vec![0; tokens.len()],
        tables: vec![&blocks],
        outputs: vec![tokens.len() - 1],
        tokens,
    };
    decoder.forward(&Team::alone(), &batch, &mut decoder.cache(blocks.len()), &mut Scratch::default());
}

#[test]
fn a_safetensors_file_cut_off_anywhere_is_refused_by_name() {
    bound_memory();
    let directory = copy_of("qwen3");
    let path = directory.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    assert!(header < 10_000);
    safetensors(directory.path()).expect("the whole file is a model");
    let lengths = (0..header + 2).chain(drawn(whole.len()).take(CUTS)).chain([whole.len() - 1]);
    cut(&path, lengths, |length| {
        let error = safetensors(directory.path()).map(drop).expect_err("a cut file is refused");
        assert!(error.contains("model.safetensors") && error.contains("truncated"), "{length}: {error}");
    });
}

#[test]
fn a_gguf_file_cut_off_anywhere_is_refused_by_name() {
    bound_memory();
    let directory = copy_of("qwen3-gguf");
    let path = directory.path().join("qwen3-gguf.gguf");
    let whole = std::fs::read(&path).unwrap();
    gguf(&path).expect("the whole file is a model");
    let lengths = (0..10_000).chain(drawn(whole.len()).take(CUTS)).chain([whole.len() - 1]);
    cut(&path, lengths, |length| {
        let error = gguf(&path).map(drop).expect_err("a cut file is refused");
        assert!(error.contains("qwen3-gguf.gguf") && error.contains("truncated"), "{length}: {error}");
    });
}

#[test]
fn json_files_cut_off_anywhere_are_refused_by_name() {
    bound_memory();
    let directory = tempfile::tempdir().unwrap();
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
    for name in ["config.json", "tokenizer.json"] {
        let whole = std::fs::read(tiny.join(name)).unwrap();
        let whole = whole.trim_ascii_end();
        let path = directory.path().join(name);
        std::fs::write(&path, whole).unwrap();
        let lengths = (0..whole.len().min(300)).chain(drawn(whole.len()).take(CUTS)).chain([whole.len() - 1]);
        cut(&path, lengths, |length| {
            let error = match name {
                "config.json" => Architecture::read(&path).map(drop),
                _ => Tokenizer::load(&path).map(drop),
            };
            let error = error.expect_err("a cut file is refused").to_string();
            assert!(error.contains(name) && error.contains("malformed"), "{length}: {error}");
        });
    }
}

#[test]
fn absurd_numbers_in_a_gguf_header_are_refused_by_name() {
    bound_memory();
    let directory = copy_of("qwen3-gguf");
    let path = directory.path().join("qwen3-gguf.gguf");
    let whole = std::fs::read(&path).unwrap();
    let value_of = |key: &str| {
        let found = whole.windows(key.len()).position(|window| window == key.as_bytes());
        found.unwrap_or_else(|| panic!("{key} is in the file")) + key.len() + 4
    };
    let mut cases: Vec<(String, Vec<u8>)> = Vec::new();
    for count in [u64::MAX, 1 << 62, 1 << 40, 1 << 31, 1_000_000] {
        for (what, at) in [
            ("tensors", 8),
            ("entries", 16),
            ("length of the first key", 24),
            ("tokens", value_of("tokenizer.ggml.tokens") + 4),
        ] {
            let mut changed = whole.clone();
            changed[at..at + 8].copy_from_slice(&count.to_le_bytes());
            cases.push((format!("{count} {what}"), changed));
        }
    }
    for key in [
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
    ] {
        for value in [0, 3, u32::MAX, 1 << 24] {
            let mut changed = whole.clone();
            let at = value_of(&format!("qwen3.{key}"));
            changed[at..at + 4].copy_from_slice(&value.to_le_bytes());
            cases.push((format!("{key} {value}"), changed));
        }
    }
    // A key of the same length becomes the alignment, which tensors are found by.
    let mut changed = whole.clone();
    let at = value_of("qwen3.block_count");
    changed[at - 4 - 17..at - 4].copy_from_slice(b"general.alignment");
    changed[at..at + 4].copy_from_slice(&0_u32.to_le_bytes());
    cases.push(("an alignment of 0".to_owned(), changed));
    for (at, (what, bytes)) in cases.into_iter().enumerate() {
        let name = format!("absurd-{at}.gguf");
        let path = directory.path().join(&name);
        std::fs::write(&path, bytes).unwrap();
        let error = gguf(&path).map(drop).expect_err(&what);
        assert!(error.contains(&name), "{what}: {error}");
    }
}

/// A change of a file: at a place (a part of the whole, in millionths), these bytes.
fn change() -> impl Strategy<Value = (u32, Vec<u8>)> {
    let absurd =
        prop_oneof![Just(u64::MAX), Just(1 << 62), Just(1 << 40), Just(1 << 32), Just(1 << 31), Just(0), Just(1)];
    let bytes = prop_oneof![
        4 => any::<u8>().prop_map(|byte| vec![byte]),
        2 => absurd.clone().prop_map(|number: u64| number.to_le_bytes().to_vec()),
        1 => absurd.prop_map(|number: u64| number.to_le_bytes()[..4].to_vec()),
        1 => prop::collection::vec(any::<u8>(), 1..12),
    ];
    (0..1_000_000_u32, bytes)
}

/// The whole with changes among its first `header` bytes.
fn changed(whole: &[u8], header: usize, changes: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for (place, new) in changes {
        let at = *place as usize * header / 1_000_000;
        let end = (at + new.len()).min(bytes.len());
        bytes[at..end].copy_from_slice(&new[..end - at]);
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_changed_gguf_file_is_refused_by_name_or_is_a_model(changes in prop::collection::vec(change(), 0..4)) {
        bound_memory();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("changed.gguf");
        let whole = std::fs::read(reference("qwen3-gguf/qwen3-gguf.gguf")).unwrap();
        std::fs::write(&path, changed(&whole, 7_000, &changes)).unwrap();
        match gguf(&path) {
            Ok(model) => compute(&model.decoder),
            Err(error) => prop_assert!(error.contains("changed.gguf") && !changes.is_empty(), "{}", error),
        }
    }

    #[test]
    fn a_changed_safetensors_file_is_refused_by_name_or_is_a_model(changes in prop::collection::vec(change(), 0..4)) {
        bound_memory();
        let directory = tempfile::tempdir().unwrap();
        std::fs::copy(reference("qwen3/config.json"), directory.path().join("config.json")).unwrap();
        let path = directory.path().join("model.safetensors");
        let whole = std::fs::read(reference("qwen3/model.safetensors")).unwrap();
        std::fs::write(&path, changed(&whole, 3_000, &changes)).unwrap();
        match safetensors(directory.path()) {
            Ok(decoder) => compute(&decoder),
            Err(error) => prop_assert!(error.contains("model.safetensors") && !changes.is_empty(), "{}", error),
        }
    }
}
