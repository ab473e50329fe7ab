//! The kernels on the host: compiled with the host's compiler once for each state of their sources, and launched over
//! memory beside which there is none.
#![allow(unsafe_code, reason = "runs what another compiler made, over memory of its own")]

use std::{
    ffi::{CStr, CString, c_char, c_void},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use libloading::Library;
use sha2::{Digest, Sha256};

type StartKernel =
    unsafe extern "C" fn(*const c_char, *const u32, *const u32, u32, *mut *mut c_void, u32) -> *const c_char;
type Allocate = unsafe extern "C" fn(usize, bool) -> *mut c_void;
type Release = unsafe extern "C" fn(*mut c_void, usize);

/// A library of all kernels.
#[derive(Debug)]
pub(crate) struct Emulated {
    start: StartKernel,
    allocate: Allocate,
    release: Release,
}

/// How the threads of a block, and blocks, are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// By their numbers.
    Forward,
    /// Backwards.
    Backward,
    /// Shuffled anew whenever all have run, by this seed; at least 2.
    Shuffled(u32),
}

impl Emulated {
    /// The library, compiled if it is not yet.
    pub(crate) fn get() -> &'static Self {
        static LIBRARY: OnceLock<Emulated> = OnceLock::new();
        LIBRARY.get_or_init(|| {
            let file = build();
            // SAFETY: when it is opened, the library only lists its kernels. It is never closed, so that what it gives
            // stays; the types are those in `emulation.cpp`.
            unsafe {
                let library = Library::new(&file).unwrap_or_else(|error| panic!("open {}: {error}", file.display()));
                let library: &'static Library = Box::leak(Box::new(library));
                Self {
                    start: *library.get(b"emulated_launch").unwrap(),
                    allocate: *library.get(b"emulated_allocate").unwrap(),
                    release: *library.get(b"emulated_release").unwrap(),
                }
            }
        })
    }

    /// Runs a kernel to its end. `arguments` points to each of its parameters, as for `cuLaunchKernel`.
    ///
    /// # Errors
    /// There is no such kernel, or it wants another block; the text says so. What a kernel does wrong ends the process.
    pub(crate) fn launch(
        &self,
        kernel: &str,
        grid: [u32; 3],
        threads: u32,
        shared: u32,
        arguments: &mut [*mut c_void],
        order: Order,
    ) -> Result<(), String> {
        let name = CString::new(kernel).expect("a name holds no zero");
        let order = match order {
            Order::Forward => 0,
            Order::Backward => 1,
            Order::Shuffled(seed) => seed.max(2),
        };
        // SAFETY: there is an argument for each parameter (the caller's part), and all outlive the call.
        unsafe {
            let block = [threads, 1, 1];
            let wrong =
                (self.start)(name.as_ptr(), grid.as_ptr(), block.as_ptr(), shared, arguments.as_mut_ptr(), order);
            if wrong.is_null() { Ok(()) } else { Err(CStr::from_ptr(wrong).to_string_lossy().into_owned()) }
        }
    }

    /// Memory that nothing stands before, or (`at_end`) behind.
    pub(crate) fn allocate(&self, bytes: usize, at_end: bool) -> *mut c_void {
        // SAFETY: it takes any size.
        let memory = unsafe { (self.allocate)(bytes, at_end) };
        assert!(!memory.is_null(), "there is no memory for {bytes} bytes");
        memory
    }

    /// Gives back what was allocated with so many bytes.
    ///
    /// # Safety
    /// `memory` is from `allocate`, with the same size, and is not used again.
    pub(crate) unsafe fn release(&self, memory: *mut c_void, bytes: usize) {
        // SAFETY: the caller's part.
        unsafe { (self.release)(memory, bytes) }
    }
}

/// The folder of this crate's kernels, and that of their emulation: where this was compiled, or, for a program that was
/// carried to another machine, below where it runs.
pub(crate) fn folders() -> (PathBuf, PathBuf) {
    let places = [env!("CARGO_MANIFEST_DIR"), "inference-worker", "."];
    let crate_folder = places.into_iter().map(Path::new).find(|place| place.join("tests/cuda/emulation.h").exists());
    let crate_folder = crate_folder.unwrap_or_else(|| panic!("no sources lie in {places:?}"));
    (crate_folder.join("src/cuda/kernels"), crate_folder.join("tests/cuda"))
}

/// A folder for what is compiled.
fn working_folder() -> PathBuf {
    let own = Path::new(env!("CARGO_TARGET_TMPDIR"));
    if own.exists() { own.to_owned() } else { std::env::temp_dir() }
}

/// Compiles what is not compiled yet, and returns the library.
fn build() -> PathBuf {
    let (kernels, emulation) = folders();
    let mut sources: Vec<PathBuf> = std::fs::read_dir(&kernels)
        .unwrap_or_else(|error| panic!("{}: {error}", kernels.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    sources.sort();
    assert!(!sources.is_empty(), "{} holds kernels", kernels.display());
    let (common, header) = (kernels.join("device.cuh"), emulation.join("emulation.h"));
    sources.push(emulation.join("emulation.cpp"));
    let mut hash = Sha256::new();
    for path in sources.iter().chain([&common, &header]) {
        hash.update(std::fs::read(path).unwrap());
    }
    let folder = working_folder();
    let library = folder.join(format!("kernels-{}.so", hex::encode(&hash.finalize()[..8])));
    if library.exists() {
        return library;
    }
    let work = tempfile::tempdir_in(&folder).unwrap();
    let object = |source: &Path| work.path().join(source.file_name().expect("a file")).with_extension("o");
    // Products and sums are rounded one by one: whether the device fuses them is its compiler's choice.
    let common_flags = ["-std=c++20", "-O2", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unknown-pragmas"];
    let compiling = sources.iter().map(|source| {
        let mut compiler = Command::new("c++");
        compiler.args(common_flags).args(["-Wno-unused-parameter", "-I"]).arg(&emulation);
        if source.extension().is_some_and(|extension| extension == "cu") {
            compiler.args(["-include", "emulation.h", "-include"]).arg(&common).args(["-x", "c++"]);
        }
        compiler.arg("-c").arg(source).arg("-o").arg(object(source));
        (source, compiler.spawn().expect("a C++ compiler is installed"))
    });
    for (source, mut compiler) in compiling.collect::<Vec<_>>() {
        assert!(compiler.wait().unwrap().success(), "{} does not compile", source.display());
    }
    let made = work.path().join("kernels.so");
    let linked =
        Command::new("c++").arg("-shared").arg("-o").arg(&made).args(sources.iter().map(|s| object(s))).status();
    assert!(linked.unwrap().success(), "the kernels do not link");
    std::fs::rename(&made, &library).unwrap();
    library
}
