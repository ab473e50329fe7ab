//! The kernels as a library of the host, compiled once for each state of their sources.

use std::{
    ffi::{CStr, CString, c_char, c_void},
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use inference_worker::cuda::modules::SOURCES;
use libloading::Library;
use sha2::{Digest, Sha256};

type LaunchKernel =
    unsafe extern "C" fn(*const c_char, *const u32, *const u32, u32, *mut *mut c_void, u32) -> *const c_char;
type Allocate = unsafe extern "C" fn(usize, bool) -> *mut c_void;
type Release = unsafe extern "C" fn(*mut c_void, usize);

static LIBRARY: LazyLock<Library> = LazyLock::new(|| {
    let file = built();
    #[expect(unsafe_code, reason = "opens the library that was just compiled")]
    // SAFETY: it runs nothing when it is opened but the registration of its kernels.
    unsafe { Library::new(&file) }.unwrap_or_else(|error| panic!("open {}: {error}", file.display()))
});

/// Compiles what is not compiled yet, and returns the library.
fn built() -> PathBuf {
    let emulation = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda");
    let runtime = ["emulation.h", "emulation.cpp"].map(|name| std::fs::read_to_string(emulation.join(name)).unwrap());
    let mut hash = Sha256::new();
    SOURCES.iter().map(|source| source.whole()).chain(runtime).for_each(|text| hash.update(text));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let library = folder.join(format!("kernels-{}.so", hex::encode(&hash.finalize()[..8])));
    if library.exists() {
        return library;
    }
    let work = tempfile::tempdir_in(folder).unwrap();
    let compiler = |arguments: &[&str]| {
        let done = Command::new("g++").args(arguments).output().expect("g++ is installed");
        assert!(done.status.success(), "g++ {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    };
    let mut objects = Vec::new();
    let mut sources = vec![("emulation", emulation.join("emulation.cpp"))];
    for source in SOURCES {
        let file = work.path().join(format!("{}.cpp", source.name));
        let header = emulation.join("emulation.h");
        std::fs::write(&file, format!("#include \"{}\"\n{}", header.display(), source.whole())).unwrap();
        sources.push((source.name, file));
    }
    for (name, file) in sources {
        let object = work.path().join(format!("{name}.o")).display().to_string();
        let file = file.display().to_string();
        compiler(&["-std=c++20", "-O2", "-fPIC", "-w", "-ffp-contract=off", "-c", &file, "-o", &object]);
        objects.push(object);
    }
    let made = work.path().join("kernels.so").display().to_string();
    let mut link = vec!["-shared", "-o", &made];
    link.extend(objects.iter().map(String::as_str));
    compiler(&link);
    std::fs::rename(&made, &library).unwrap();
    library
}

fn symbol<T: Copy>(name: &str) -> T {
    #[expect(unsafe_code, reason = "finds a function of the library")]
    // SAFETY: the types above are those in `emulation.cpp`.
    *unsafe { LIBRARY.get::<T>(name.as_bytes()) }.unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Runs a kernel, or says what is wrong with the launch.
pub(crate) fn launch(
    kernel: &str,
    grid: [u32; 3],
    threads: u32,
    shared: u32,
    arguments: &mut [*mut c_void],
) -> Result<(), String> {
    let name = CString::new(kernel).unwrap();
    let start: LaunchKernel = symbol("emulated_launch");
    #[expect(unsafe_code, reason = "runs a kernel on the host")]
    // SAFETY: the arguments point to as many values as the kernel has parameters, and outlive the call.
    let wrong = unsafe {
        let block = [threads, 1, 1];
        let wrong = start(name.as_ptr(), grid.as_ptr(), block.as_ptr(), shared, arguments.as_mut_ptr(), 0);
        (!wrong.is_null()).then(|| CStr::from_ptr(wrong).to_string_lossy().into_owned())
    };
    wrong.map_or(Ok(()), Err)
}

/// Memory with nothing in front of it and nothing behind it.
pub(crate) fn allocate(bytes: usize) -> *mut c_void {
    let allocate: Allocate = symbol("emulated_allocate");
    #[expect(unsafe_code, reason = "takes memory")]
    // SAFETY: it is given back by `release`.
    let at = unsafe { allocate(bytes, true) };
    assert!(!at.is_null(), "the system gives {bytes} bytes");
    at
}

/// Gives it back.
pub(crate) fn release(at: *mut c_void, bytes: usize) {
    let release: Release = symbol("emulated_release");
    #[expect(unsafe_code, reason = "gives memory back")]
    // SAFETY: it was taken by `allocate`, with so many bytes.
    unsafe {
        release(at, bytes);
    }
}
