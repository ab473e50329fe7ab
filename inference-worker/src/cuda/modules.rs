//! Our kernels: shipped for compute capability 9 (Hopper), built by NVRTC where the program runs for every other.
//!
//! What was built is kept in the user's cache folder, under a name that is a hash of everything that went into it. Each
//! file begins with the hash of what follows, so one that was cut short is built anew.

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString},
    path::{Path, PathBuf},
};

use cudarc::nvrtc::{result, sys};
use sha2::{Digest, Sha256};

use super::driver::{Absent, Found};

/// What stands before every source.
const COMMON: &str = include_str!("kernels/device.cuh");
/// The capability whose kernels are shipped; they run on all of its generation.
const SHIPPED: i32 = 9;

/// One file of kernels.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    /// Its name, without the ending.
    pub name: &'static str,
    text: &'static str,
    cubin: &'static [u8],
}

macro_rules! sources {
    ($($name:literal),* $(,)?) => {
        &[$(Source {
            name: $name,
            text: include_str!(concat!("kernels/", $name, ".cu")),
            cubin: include_bytes!(concat!("cubins/", $name, ".cubin")),
        }),*]
    };
}

/// All kernels.
pub const SOURCES: &[Source] = sources![
    "decode_attention",
    "dequantise",
    "embed",
    "feed",
    "norm",
    "plain_attention",
    "prefill_attention",
    "product",
    "rotate",
    "sample",
    "silu",
    "skinny_product",
];

impl Source {
    /// The text that is compiled.
    pub fn whole(&self) -> String {
        format!("{COMMON}\n{}", self.text)
    }

    /// The kernels in it, in their order.
    pub fn kernels(&self) -> Vec<&'static str> {
        let named = self.text.lines().filter_map(|line| line.strip_prefix("KERNEL(")?.split(',').next());
        named.map(str::trim).collect()
    }
}

/// Whether kernels are shipped for a compute capability.
pub fn shipped(capability: (i32, i32)) -> bool {
    capability.0 == SHIPPED
}

/// Whether kernels can be built here.
pub fn can_build() -> bool {
    #[expect(unsafe_code, reason = "opens a library")]
    // SAFETY: NVIDIA's library runs no code of others when it is opened.
    unsafe {
        sys::is_culib_present()
    }
}

/// The machine code of all kernels for a GPU.
///
/// # Errors
/// None is shipped for it, and it cannot be built.
pub fn cubins(gpu: &Found) -> Result<Vec<(Source, Vec<u8>)>, Absent> {
    if shipped(gpu.capability) {
        return Ok(SOURCES.iter().map(|source| (*source, source.cubin.to_vec())).collect());
    }
    if !can_build() {
        return Err(Absent::NoKernels { gpu: gpu.name.clone(), capability: gpu.capability });
    }
    let cache = cache_folder();
    let build = |source: &Source| match build_cached(source, gpu.capability, cache.as_deref()) {
        Ok(cubin) => Ok((*source, cubin)),
        Err(why) => Err(Absent::Failed(format!("build the kernels in {}.cu for {}: {why}", source.name, gpu.name))),
    };
    SOURCES.iter().map(build).collect()
}

/// Loaded kernels: which module holds each.
#[derive(Debug)]
pub struct Modules<M>(BTreeMap<&'static str, M>);

impl<M: Clone> Modules<M> {
    /// Loads all of them.
    pub(super) fn load<E>(cubins: Vec<(Source, Vec<u8>)>, load: impl Fn(Vec<u8>) -> Result<M, E>) -> Result<Self, E> {
        let mut modules = BTreeMap::new();
        for (source, cubin) in cubins {
            let module = load(cubin)?;
            modules.extend(source.kernels().into_iter().map(|kernel| (kernel, module.clone())));
        }
        Ok(Self(modules))
    }

    /// The module with this kernel.
    pub(super) fn of(&self, kernel: &str) -> Option<&M> {
        self.0.get(kernel)
    }
}

fn options(capability: (i32, i32)) -> Vec<String> {
    vec![format!("--gpu-architecture=sm_{}{}", capability.0, capability.1), "--std=c++17".to_owned()]
}

fn build_cached(source: &Source, capability: (i32, i32), cache: Option<&Path>) -> Result<Vec<u8>, String> {
    let (text, options) = (source.whole(), options(capability));
    let version = version()?;
    let file = cache.map(|folder| folder.join(key(&text, &options, version)));
    if let Some(file) = &file
        && let Ok(bytes) = std::fs::read(file)
        && let Some(kept) = unsealed(&bytes)
    {
        return Ok(kept.to_vec());
    }
    let cubin = compile(&text, &options)?;
    if let Some(file) = &file
        && let Err(error) = keep(file, &cubin)
    {
        tracing::debug!(%error, file = %file.display(), "kernels are built anew at the next start");
    }
    Ok(cubin)
}

/// The name of what is built from this, by this version of NVRTC.
fn key(text: &str, options: &[String], (major, minor): (i32, i32)) -> String {
    let mut hasher = Sha256::new();
    for part in options.iter().map(String::as_str).chain([text]) {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.update(major.to_le_bytes());
    hasher.update(minor.to_le_bytes());
    format!("{}.cubin", hex::encode(hasher.finalize()))
}

/// The content behind a file's first 32 bytes, if these are its hash.
fn unsealed(bytes: &[u8]) -> Option<&[u8]> {
    let (hash, content) = bytes.split_at_checked(32)?;
    (Sha256::digest(content).as_slice() == hash).then_some(content)
}

/// Writes a file whole or not at all.
fn keep(file: &Path, content: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let new = file.with_extension(format!("{}.new", std::process::id()));
    std::fs::write(&new, [Sha256::digest(content).as_slice(), content].concat())?;
    std::fs::rename(new, file)
}

/// Where a program keeps what it can make again.
fn cache_folder() -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "the folder belongs to the user's session, not to our settings")]
    let of = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let root = of("XDG_CACHE_HOME").or_else(|| of("HOME").map(|home| home.join(".cache")))?;
    Some(root.join("vlinders/kernels"))
}

fn version() -> Result<(i32, i32), String> {
    let (mut major, mut minor) = (0, 0);
    #[expect(unsafe_code, reason = "asks NVRTC for its version")]
    // SAFETY: both numbers are written where they are wanted.
    let asked = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    asked.result().map(|()| (major, minor)).map_err(|error| format!("NVRTC says no version: {error}"))
}

/// Machine code for one architecture.
fn compile(text: &str, options: &[String]) -> Result<Vec<u8>, String> {
    let text = CString::new(text).map_err(|_| "the source holds a zero".to_owned())?;
    let program = result::create_program(&text, None).map_err(|error| error.to_string())?;
    #[expect(unsafe_code, reason = "compiles, and takes what came of it")]
    // SAFETY: the program lives until it is destroyed below, and the code is written to as many bytes as NVRTC names.
    unsafe {
        let compiled = result::compile_program(program, options).map_err(|error| {
            let log = result::get_program_log(program).unwrap_or_default();
            let log: Vec<u8> = log.into_iter().map(|byte| byte as u8).collect();
            let log = CStr::from_bytes_until_nul(&log).map(|log| log.to_string_lossy().into_owned());
            format!("{error}: {}", log.unwrap_or_default().trim())
        });
        let code = compiled.and_then(|()| {
            let mut size = 0;
            sys::nvrtcGetCUBINSize(program, &raw mut size).result().map_err(|error| error.to_string())?;
            let mut code = vec![0_u8; size];
            sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast()).result().map_err(|error| error.to_string())?;
            Ok(code)
        });
        result::destroy_program(program).map_err(|error| error.to_string())?;
        code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_is_in_one_source() {
        let all: Vec<&str> = SOURCES.iter().flat_map(Source::kernels).collect();
        let mut different = all.clone();
        different.sort_unstable();
        different.dedup();
        assert_eq!(different.len(), all.len(), "{all:?}");
        for needed in ["feed", "embed", "rms_norm", "add_rms_norm", "rotate_and_store", "silu_multiply", "argmax"] {
            assert!(all.contains(&needed), "{needed} is not in {all:?}");
        }
    }

    #[test]
    fn what_was_built_is_found_by_everything_that_went_into_it_and_only_whole() {
        let plain = key("text", &options((8, 0)), (13, 0));
        assert_eq!(plain, key("text", &options((8, 0)), (13, 0)));
        let others = [
            key("other", &options((8, 0)), (13, 0)),
            key("text", &options((8, 6)), (13, 0)),
            key("text", &options((8, 0)), (13, 1)),
        ];
        assert!(others.iter().all(|other| *other != plain), "{others:?}");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kernels").join(plain);
        keep(&file, b"machine code").unwrap();
        let bytes = std::fs::read(&file).unwrap();
        assert_eq!(unsealed(&bytes), Some(&b"machine code"[..]));
        assert_eq!(unsealed(&bytes[..bytes.len() - 1]), None, "it was cut short");
        assert_eq!(unsealed(b"short"), None);
        assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn without_a_driver_nothing_panics_and_the_reason_is_said() {
        match super::super::driver::find() {
            Ok(found) => assert!(!found.is_empty()),
            Err(why) => assert!(!why.to_string().is_empty()),
        }
    }
}
