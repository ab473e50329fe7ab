//! NVIDIA's library by which the GPUs of a machine sum what each has computed (NCCL), opened when it is first needed.
//!
//! Its packages name it `libnccl.so.2`, under which cudarc does not look, and what it does not find it panics about; so the
//! few functions that are called are looked up here. Each GPU is a rank with a communicator of its own, which the thread
//! of that rank uses. What is asked goes to the rank's stream, like a kernel: it is done in order there, and recorded.
//!
//! The unsafe blocks here are calls into NCCL. They hold because the types are those of its header (`nccl.h`, unchanged
//! since 2.10), the library is never closed, and a communicator is used only until it is aborted or destroyed.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use libloading::Library;

use super::device::{Address, Fault};

/// What is said where it is missing.
pub const NO_NCCL: &str = "NCCL is not found (libnccl.so.2), so no model is shared by several GPUs: install it, or name its \
                           folder in LD_LIBRARY_PATH";

/// Under which names it is looked for.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
/// The first that sums numbers of bf16: 2.10.
const VERSION_LEAST: c_int = 21_000;

const OK: c_int = 0;
const INVALID_ARGUMENT: c_int = 4;
const INVALID_USAGE: c_int = 5;
const UINT8: c_int = 1;
const BFLOAT16: c_int = 9;
const SUM: c_int = 0;

type Handle = *mut c_void;
type Stream = *mut c_void;

/// NCCL's functions, by the types of its header.
struct Nccl {
    init_all: unsafe extern "C" fn(*mut Handle, c_int, *const c_int) -> c_int,
    all_reduce: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, Stream) -> c_int,
    broadcast: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, Stream) -> c_int,
    group_start: unsafe extern "C" fn() -> c_int,
    group_end: unsafe extern "C" fn() -> c_int,
    abort: unsafe extern "C" fn(Handle) -> c_int,
    destroy: unsafe extern "C" fn(Handle) -> c_int,
    error: unsafe extern "C" fn(c_int) -> *const c_char,
    version: c_int,
}

/// Its version, as in `2.28.9`.
///
/// # Errors
/// It is not installed, or too old; the text says what to do.
pub fn version() -> Result<String, String> {
    let version = Nccl::get()?.version;
    Ok(format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100))
}

impl Nccl {
    fn get() -> Result<&'static Self, String> {
        static FOUND: OnceLock<Result<Nccl, String>> = OnceLock::new();
        FOUND.get_or_init(Self::open).as_ref().map_err(Clone::clone)
    }

    fn open() -> Result<Self, String> {
        #[expect(unsafe_code, reason = "opens a library")]
        // SAFETY: NVIDIA's library runs no code of others when it is opened.
        let opened = NAMES.iter().find_map(|name| unsafe { Library::new(*name).ok() });
        // It stays open, so that its functions stay.
        let library: &'static Library = Box::leak(Box::new(opened.ok_or(NO_NCCL)?));
        #[expect(unsafe_code, reason = "looks functions up, and asks for the version")]
        // SAFETY: the types are those of NCCL's header; the version is written where it is wanted.
        let nccl = unsafe {
            let get_version: unsafe extern "C" fn(*mut c_int) -> c_int = found(library, "ncclGetVersion")?;
            let mut version = 0;
            get_version(&raw mut version);
            Self {
                init_all: found(library, "ncclCommInitAll")?,
                all_reduce: found(library, "ncclAllReduce")?,
                broadcast: found(library, "ncclBroadcast")?,
                group_start: found(library, "ncclGroupStart")?,
                group_end: found(library, "ncclGroupEnd")?,
                abort: found(library, "ncclCommAbort")?,
                destroy: found(library, "ncclCommDestroy")?,
                error: found(library, "ncclGetErrorString")?,
                version,
            }
        };
        if nccl.version < VERSION_LEAST {
            return Err(format!("NCCL is too old (libnccl.so.2 has version {}, 2.10 is needed)", nccl.version));
        }
        Ok(nccl)
    }

    /// What came of a call.
    fn checked(&self, code: c_int, what: &str) -> Result<(), Fault> {
        if code == OK {
            return Ok(());
        }
        #[expect(unsafe_code, reason = "asks for the text of an error")]
        // SAFETY: NCCL returns a text of its own for every number.
        let text = unsafe { CStr::from_ptr((self.error)(code)) }.to_string_lossy().into_owned();
        let why = format!("NCCL cannot {what}: {text}");
        Err(if matches!(code, INVALID_ARGUMENT | INVALID_USAGE) { Fault::Refused(why) } else { Fault::Lost(why) })
    }
}

/// A function of the library.
///
/// # Safety
/// `T` is its type.
#[expect(unsafe_code, reason = "gives a function the type that the caller knows")]
unsafe fn found<T: Copy>(library: &'static Library, name: &str) -> Result<T, String> {
    // SAFETY: the caller's part.
    let symbol = unsafe { library.get::<T>(name.as_bytes()) };
    symbol.map(|function| *function).map_err(|error| format!("libnccl.so.2 has no {name}: {error}"))
}

/// What a rank reaches the others with.
pub(super) struct Communicator {
    nccl: &'static Nccl,
    /// The others were given up: nothing is asked any more.
    parted: AtomicBool,
    /// Locked while something is asked. None once it was given back.
    handle: Arc<Mutex<Option<Opened>>>,
}

struct Opened(Handle);

#[expect(unsafe_code, reason = "a communicator may move to another thread, and is used by one at a time")]
// SAFETY: NCCL asks that a communicator is not used by two threads at the same time; it is behind a lock.
unsafe impl Send for Opened {}

/// Brings GPUs together: a communicator for each, in their order. Blocks until all have met.
///
/// # Errors
/// NCCL is missing, or does not bring them together; the text says why.
pub(super) fn join(gpus: &[u32]) -> Result<Vec<Communicator>, String> {
    let nccl = Nccl::get()?;
    let devices: Vec<c_int> = gpus.iter().map(|gpu| *gpu as c_int).collect();
    let mut handles: Vec<Handle> = vec![std::ptr::null_mut(); gpus.len()];
    #[expect(unsafe_code, reason = "brings GPUs together")]
    // SAFETY: both lists are as long as is said.
    let code = unsafe { (nccl.init_all)(handles.as_mut_ptr(), gpus.len() as c_int, devices.as_ptr()) };
    nccl.checked(code, &format!("bring the GPUs {gpus:?} together")).map_err(|fault| fault.to_string())?;
    let opened = |handle| Arc::new(Mutex::new(Some(Opened(handle))));
    Ok(handles
        .into_iter()
        .map(|handle| Communicator { nccl, parted: AtomicBool::new(false), handle: opened(handle) })
        .collect())
}

/// What one thread asks of several ranks begins for all of them at the end: it would wait for the second in the first.
pub(super) fn grouped(what: impl FnOnce() -> Result<(), Fault>) -> Result<(), Fault> {
    let nccl = Nccl::get().map_err(Fault::Refused)?;
    #[expect(unsafe_code, reason = "begins and ends a group")]
    // SAFETY: a group that was begun is ended on the same thread.
    unsafe {
        nccl.checked((nccl.group_start)(), "begin a group")?;
        let asked = what();
        let ended = nccl.checked((nccl.group_end)(), "carry out a group");
        asked.and(ended)
    }
}

impl Communicator {
    /// Replaces so many numbers of bf16 by their sums over the ranks, when the stream comes to it.
    pub(super) fn all_reduce(&self, at: Address, count: usize, stream: Stream) -> Result<(), Fault> {
        self.ask("sum", |handle| {
            #[expect(unsafe_code, reason = "sums on the device")]
            // SAFETY: whoever asks knows how much lies there; the address is this rank's.
            unsafe {
                (self.nccl.all_reduce)(at as *const c_void, at as *mut c_void, count, BFLOAT16, SUM, handle, stream)
            }
        })
    }

    /// Replaces bytes by those of rank 0, when the stream comes to it.
    pub(super) fn broadcast(&self, at: Address, bytes: usize, stream: Stream) -> Result<(), Fault> {
        self.ask("tell", |handle| {
            #[expect(unsafe_code, reason = "copies between devices")]
            // SAFETY: as above.
            unsafe {
                (self.nccl.broadcast)(at as *const c_void, at as *mut c_void, bytes, UINT8, 0, handle, stream)
            }
        })
    }

    /// Ends what waits for other ranks, on the device, too. Nothing can be asked any more. `keeps` what NCCL still uses.
    ///
    /// It sets what waits free at once, and goes on until nothing that was recorded is left, which whoever is set free gives
    /// up; so it has a thread of its own, which waits, too, while a call of this rank is under way in NCCL: such a call ends
    /// when another rank is aborted, with which it is connected. On a device that is lost it may never end.
    pub(super) fn abort(&self, keeps: impl Send + 'static) {
        if self.parted.swap(true, Ordering::SeqCst) {
            return;
        }
        let (handle, abort) = (Arc::clone(&self.handle), self.nccl.abort);
        let aborting = move || {
            let opened = lock(&handle).take();
            let (Some(Opened(handle)), _keeps) = (opened, keeps) else { return };
            #[expect(unsafe_code, reason = "gives the communicator up")]
            // SAFETY: nobody else has it any more. What a lost device refuses is lost anyway.
            unsafe {
                abort(handle);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("nccl-abort".to_owned()).spawn(aborting) {
            tracing::error!(%error, "GPUs that compute together no more may wait for each other");
        }
    }

    fn ask(&self, what: &str, call: impl FnOnce(Handle) -> c_int) -> Result<(), Fault> {
        match &*lock(&self.handle) {
            Some(Opened(handle)) if !self.parted.load(Ordering::SeqCst) => self.nccl.checked(call(*handle), what),
            _ => Err(Fault::Lost("the GPUs that compute the model do not reach each other any more".to_owned())),
        }
    }
}

fn lock(handle: &Mutex<Option<Opened>>) -> MutexGuard<'_, Option<Opened>> {
    handle.lock().expect("no panic while the lock is held")
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if self.parted.load(Ordering::SeqCst) {
            // Whoever aborts it has it, or is about to: giving it back in order would wait for the others.
            return;
        }
        let opened = lock(&self.handle).take();
        if let Some(Opened(handle)) = opened {
            #[expect(unsafe_code, reason = "gives the communicator back")]
            // SAFETY: nothing is under way or recorded, and nobody else has it.
            unsafe {
                (self.nccl.destroy)(handle);
            }
        }
    }
}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Communicator(NCCL {})", self.nccl.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_found_or_its_absence_is_told_and_nothing_panics() {
        match version() {
            Ok(version) => assert!(version.starts_with("2."), "{version}"),
            Err(why) => {
                assert!(why.contains("libnccl.so.2"), "{why}");
                assert_eq!(join(&[0, 1]).unwrap_err(), why);
                assert_eq!(grouped(|| panic!("there is nothing to group")), Err(Fault::Refused(why)));
            }
        }
    }
}
