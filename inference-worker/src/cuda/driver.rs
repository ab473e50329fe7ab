//! A GPU through NVIDIA's driver, as a `Device`.
//!
//! Every library is looked for before it is called: without one there is a reason, and never a panic. All work goes to one
//! stream of our own, because the default stream cannot be recorded; nothing is tracked by events but copies to the host.
//!
//! The unsafe blocks here are calls into the driver and cuBLASLt. They hold because handles live as long as the `Cuda`
//! that made them, addresses come from `allocate`, and what a call writes to outlives it.

use std::{
    collections::{BTreeMap, VecDeque, btree_map::Entry},
    ffi::c_void,
    fmt,
    ptr::NonNull,
    sync::{Arc, Mutex, MutexGuard},
};

use cudarc::{
    cublaslt::{result as blas, sys as blas_sys},
    driver::{
        CudaContext, CudaEvent, CudaFunction, CudaGraph, CudaModule, CudaStream, DriverError, result,
        sys::{self, CUresult},
    },
    nvrtc::Ptx,
};

use super::{
    device::{Address, Argument, Buffer, Device, Fault, Launch, Loss, Memory, Product},
    modules::{self, Modules},
    nccl::{self, Communicator},
};
use crate::parallel::{Meeting, Rank};

/// What the kernels were built with and cuBLASLt is asked for: CUDA 13.0.
const CUDA_VERSION: i32 = 13_000;
/// What cuBLASLt may use beside its operands: NVIDIA's advice for Hopper.
pub(super) const WORKSPACE: usize = 32 << 20;
/// Uploads up to this size go through page-locked memory: the driver may wait for the stream before it reads any other.
const STAGED_MAX: usize = 8 << 20;
/// Uploads under way at the same time; a step has one, and two steps are under way.
const UPLOADS_MAX: usize = 16;
/// Shared memory a kernel gets without asking for more.
const SHARED_BY_DEFAULT: u32 = 48 << 10;

/// What is said where cuBLASLt is missing.
pub const NO_BLAS: &str = "cuBLASLt is not found (libcublasLt.so.13), so products are computed by slower kernels: install \
                           CUDA 13's libraries, or name their folder in LD_LIBRARY_PATH";

/// Why no GPU computes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Absent {
    /// There is no driver.
    #[error("no NVIDIA driver is installed (libcuda.so.1 is not found)")]
    NoDriver,
    /// The driver is older than what our kernels are built with.
    #[error(
        "the NVIDIA driver is too old: it is for CUDA {}.{}, and CUDA 13.0 is needed (driver 580 or later)",
        version / 1000, version % 1000 / 10
    )]
    OldDriver {
        /// What it is for, as CUDA counts: 12080 is 12.8.
        version: i32,
    },
    /// There is no GPU, or not this one.
    #[error("{0}")]
    NoGpu(String),
    /// Our kernels are not built for it, and cannot be built here.
    #[error(
        "{gpu} has compute capability {}.{}, for which no kernels are shipped, and NVRTC, which would build them, is not found \
         (libnvrtc.so.13): install CUDA 13's libraries, or name their folder in LD_LIBRARY_PATH",
        capability.0, capability.1
    )]
    NoKernels {
        /// Its name.
        gpu: String,
        /// Its compute capability.
        capability: (i32, i32),
    },
    /// Something else failed.
    #[error("the GPU cannot be used: {0}")]
    Failed(String),
}

/// What is known of a GPU before anything is done with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// CUDA's number of it.
    pub id: u32,
    /// What it is called.
    pub name: String,
    /// Its compute capability.
    pub capability: (i32, i32),
    /// Its memory, bytes.
    pub memory: usize,
}

/// Looks for GPUs that could compute.
///
/// # Errors
/// There is none, or what is needed beside it is missing.
pub fn find() -> Result<Vec<Found>, Absent> {
    libraries()?;
    result::init().map_err(absent)?;
    let count = result::device::get_count().map_err(absent)?;
    let one = |id: i32| -> Result<Found, DriverError> {
        let device = result::device::get(id)?;
        #[expect(unsafe_code, reason = "asks the driver about a device that it has just named")]
        // SAFETY: the device is the driver's own.
        let (memory, major, minor) = unsafe {
            let of = |attribute| result::device::get_attribute(device, attribute);
            (
                result::device::total_mem(device)?,
                of(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                of(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            )
        };
        Ok(Found { id: id as u32, name: result::device::get_name(device)?, capability: (major, minor), memory })
    };
    let found: Vec<Found> = (0..count).map(one).collect::<Result<_, _>>().map_err(absent)?;
    let first = found.first().ok_or_else(|| Absent::NoGpu("the NVIDIA driver knows no GPU".to_owned()))?;
    // One that can compute is enough.
    if !found.iter().any(|gpu| modules::shipped(gpu.capability)) && !modules::can_build() {
        return Err(Absent::NoKernels { gpu: first.name.clone(), capability: first.capability });
    }
    Ok(found)
}

/// Bytes that nobody has taken on a GPU. Wakes it up if nobody uses it.
///
/// # Errors
/// It cannot be asked.
pub fn free_memory(id: u32) -> Result<usize, Absent> {
    libraries()?;
    let context = CudaContext::new(id as usize).map_err(absent)?;
    context.mem_get_info().map(|(free, _)| free).map_err(absent)
}

/// Whether the driver is here and new enough.
fn libraries() -> Result<(), Absent> {
    #[expect(unsafe_code, reason = "opens libraries, and asks the driver for its version")]
    // SAFETY: NVIDIA's libraries run no code of others when they are opened; the version is written where it is wanted.
    unsafe {
        if !sys::is_culib_present() {
            return Err(Absent::NoDriver);
        }
        let mut version = 0;
        sys::cuDriverGetVersion(&raw mut version).result().map_err(absent)?;
        if version < CUDA_VERSION {
            return Err(Absent::OldDriver { version });
        }
    }
    Ok(())
}

/// Whether cuBLASLt multiplies. Without it kernels of our own do, which are slower.
pub fn has_blas() -> bool {
    #[expect(unsafe_code, reason = "opens a library")]
    // SAFETY: NVIDIA's library runs no code of others when it is opened.
    unsafe {
        blas_sys::is_culib_present()
    }
}

fn absent(error: DriverError) -> Absent {
    match error.0 {
        CUresult::CUDA_ERROR_NO_DEVICE => Absent::NoGpu("the NVIDIA driver knows no GPU".to_owned()),
        CUresult::CUDA_ERROR_STUB_LIBRARY => {
            Absent::Failed("libcuda.so.1 is a stub to link with; take its folder out of LD_LIBRARY_PATH".to_owned())
        }
        _ => Absent::Failed(told(error)),
    }
}

/// The driver's name of an error and what it says about it.
fn told(error: DriverError) -> String {
    let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
    format!("{:?}{}", error.0, text.map(|text| format!(" ({text})")).unwrap_or_default())
}

/// One GPU.
pub struct Cuda {
    /// None where it computes alone. First, because it goes before the stream that it was used with.
    member: Option<Member>,
    id: u32,
    name: String,
    processors: usize,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    modules: Modules<Arc<CudaModule>>,
    /// Kernels that were started, and the shared memory each may have.
    functions: Mutex<BTreeMap<&'static str, (CudaFunction, u32)>>,
    /// None where cuBLASLt is not installed.
    blas: Option<Blas>,
    /// Memory of the host for copies, which nobody uses now.
    pinned: Mutex<Vec<Pinned>>,
    /// What is still read from, oldest first.
    uploads: Mutex<VecDeque<(CudaEvent, Pinned)>>,
    loss: Loss,
}

/// One GPU of several that compute together.
struct Member {
    rank: Rank,
    communicator: Communicator,
    meeting: Arc<Meeting>,
}

impl Cuda {
    /// Takes up GPUs that compute together, in the order of ranks: each sums with the others by NCCL. Blocks until they have
    /// met, and have summed once.
    ///
    /// # Errors
    /// One is not there, something that is needed beside it is missing, or they do not reach each other.
    pub fn open_together(ids: &[u32]) -> Result<Vec<Arc<Self>>, Absent> {
        let mut opened = ids.iter().map(|id| Self::open(*id)).collect::<Result<Vec<_>, _>>()?;
        if ids.len() > 1 {
            let meeting = Meeting::of(ids.len());
            let communicators = nccl::join(ids).map_err(Absent::Failed)?;
            for ((gpu, communicator), rank) in opened.iter_mut().zip(communicators).zip(Rank::all(ids.len())) {
                gpu.member = Some(Member { rank, communicator, meeting: Arc::clone(&meeting) });
            }
        }
        let opened: Vec<Arc<Self>> = opened.into_iter().map(Arc::new).collect();
        meet(&opened).map_err(|fault| Absent::Failed(fault.to_string()))?;
        Ok(opened)
    }

    /// Takes up one GPU: loads our kernels, building them where none are shipped for it.
    ///
    /// # Errors
    /// It is not there, or something that is needed beside it is missing.
    pub fn open(id: u32) -> Result<Self, Absent> {
        let found = find()?;
        let known = found.iter().map(|gpu| gpu.id.to_string()).collect::<Vec<_>>().join(", ");
        let gpu = found
            .into_iter()
            .find(|gpu| gpu.id == id)
            .ok_or_else(|| Absent::NoGpu(format!("there is no GPU {id}; there are: {known}")))?;
        let cubins = modules::cubins(&gpu)?;
        let context = CudaContext::new(id as usize).map_err(absent)?;
        #[expect(unsafe_code, reason = "there is one stream, and buffers are freed behind it")]
        // SAFETY: nothing here is used on two streams.
        unsafe {
            context.disable_event_tracking();
        }
        let stream = context.new_stream().map_err(absent)?;
        let load = |cubin: Vec<u8>| context.load_module(Ptx::from_binary(cubin));
        let modules = Modules::load(cubins, load).map_err(absent)?;
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let processors = context.attribute(attribute).map_err(absent)?.max(1) as usize;
        let blas = if has_blas() {
            Some(Blas::new(&context).map_err(|fault| Absent::Failed(fault.to_string()))?)
        } else {
            tracing::warn!("{NO_BLAS}");
            None
        };
        Ok(Self {
            member: None,
            id,
            name: gpu.name,
            processors,
            context,
            stream,
            modules,
            functions: Mutex::default(),
            blas,
            pinned: Mutex::default(),
            uploads: Mutex::default(),
            loss: Loss::default(),
        })
    }

    /// CUDA's number of it.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Copies within its memory.
    ///
    /// # Errors
    /// It is lost.
    pub fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), Fault> {
        self.ask(|| {
            #[expect(unsafe_code, reason = "copies on the device")]
            // SAFETY: whoever asks knows what both hold; the addresses are the device's.
            unsafe {
                result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()).map_err(fault)
            }
        })
    }

    /// Does something with the driver, on whatever thread this is.
    fn ask<T>(&self, what: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
        if let Some(why) = self.loss.get() {
            return Err(Fault::Lost(why));
        }
        self.context.bind_to_thread().map_err(fault).and_then(|()| what()).map_err(|fault| self.loss.note(fault))
    }

    /// Does something with the other ranks, if there are any. What fails between them is no loss of this GPU.
    fn with_others(&self, what: impl FnOnce(&Communicator, *mut c_void) -> Result<(), Fault>) -> Result<(), Fault> {
        let Some(Member { communicator, .. }) = &self.member else { return Ok(()) };
        self.ask(|| Ok(()))?;
        what(communicator, self.stream.cu_stream().cast())
    }

    fn function(&self, kernel: &'static str, shared: u32) -> Result<CudaFunction, Fault> {
        let mut functions = lock(&self.functions);
        let (function, largest) = match functions.entry(kernel) {
            Entry::Occupied(function) => function.into_mut(),
            Entry::Vacant(place) => {
                let module = self.modules.of(kernel);
                let module = module.ok_or_else(|| Fault::Refused(format!("there is no kernel {kernel}")))?;
                place.insert((module.load_function(kernel).map_err(fault)?, SHARED_BY_DEFAULT))
            }
        };
        if shared > *largest {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(attribute, shared as i32).map_err(fault)?;
            *largest = shared;
        }
        Ok(function.clone())
    }
}

/// GPUs sum once: what keeps them apart (no way between them, a container's small `/dev/shm`) is known before a model is read.
fn meet(gpus: &[Arc<Cuda>]) -> Result<(), Fault> {
    if gpus.len() < 2 {
        return Ok(());
    }
    let one = half::bf16::ONE.to_le_bytes();
    let numbers = gpus.iter().map(|gpu| Buffer::of(gpu, &one)).collect::<Result<Vec<_>, _>>()?;
    let sum_up = || {
        let ask = |(gpu, number): (&Arc<Cuda>, &Buffer<Cuda>)| gpu.all_reduce(number.address(), 1);
        nccl::grouped(|| gpus.iter().zip(&numbers).try_for_each(ask))?;
        for (gpu, number) in gpus.iter().zip(&numbers) {
            let sum = gpu.finish(gpu.download(number.address(), one.len())?)?;
            if sum != half::bf16::from_f32(gpus.len() as f32).to_le_bytes() {
                return Err(Fault::Refused(format!("{} of {} sums wrongly with the others", gpu.name(), gpus.len())));
            }
        }
        Ok(())
    };
    // Nobody waits, not even with giving back the numbers, for a sum that will not come.
    sum_up().inspect_err(|_| gpus.iter().for_each(|gpu| gpu.part()))
}

/// After these the context computes nothing any more, whatever is asked of it.
fn fault(error: DriverError) -> Fault {
    match error.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
            // What was wanted is known where memory is taken.
            Fault::Memory { wanted: 0, free: result::mem_get_info().map_or(0, |(free, _)| free) }
        }
        CUresult::CUDA_ERROR_INVALID_VALUE
        | CUresult::CUDA_ERROR_INVALID_HANDLE
        | CUresult::CUDA_ERROR_NOT_FOUND
        | CUresult::CUDA_ERROR_NOT_SUPPORTED
        | CUresult::CUDA_ERROR_NOT_PERMITTED
        | CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES
        | CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        | CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
        | CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT => Fault::Refused(told(error)),
        _ => Fault::Lost(told(error)),
    }
}

impl Device for Cuda {
    type Graph = Graph;
    type Download = Download;

    fn name(&self) -> String {
        format!("GPU {} ({})", self.id, self.name)
    }

    fn processors(&self) -> usize {
        self.processors
    }

    fn memory(&self) -> Result<Memory, Fault> {
        self.ask(|| {
            let (free, total) = result::mem_get_info().map_err(fault)?;
            Ok(Memory { free, total })
        })
    }

    fn allocate(&self, bytes: usize) -> Result<Address, Fault> {
        self.ask(|| {
            #[expect(unsafe_code, reason = "takes memory and fills it")]
            // SAFETY: the memory is as large as what is written to it.
            let address = unsafe {
                let address = result::malloc_sync(bytes).map_err(|error| match fault(error) {
                    Fault::Memory { free, .. } => Fault::Memory { wanted: bytes, free },
                    other => other,
                })?;
                result::memset_d8_async(address, 0, bytes, self.stream.cu_stream()).map_err(fault)?;
                address
            };
            Ok(address)
        })
    }

    fn free(&self, address: Address) {
        // It waits for the whole device. A device that is lost has no memory to give back.
        let freed = self.ask(|| {
            #[expect(unsafe_code, reason = "gives memory back")]
            // SAFETY: only the buffer that took the memory gives it back, once.
            unsafe {
                result::free_sync(address).map_err(fault)
            }
        });
        if let Err(why) = freed {
            tracing::debug!(%why, "memory of a GPU was not given back");
        }
    }

    fn upload(&self, bytes: &[u8], to: Address) -> Result<(), Fault> {
        self.ask(|| {
            if bytes.len() > STAGED_MAX {
                #[expect(unsafe_code, reason = "copies to the device")]
                // SAFETY: the buffer checks its bounds. The driver has read memory that is not page-locked when this returns.
                return unsafe { result::memcpy_htod_async(to, bytes, self.stream.cu_stream()).map_err(fault) };
            }
            let pinned = self.pinned(bytes.len())?;
            #[expect(unsafe_code, reason = "copies to the device")]
            // SAFETY: the buffer checks its bounds. The page-locked memory is as large, and is kept until the copy is made.
            unsafe {
                let staged = std::slice::from_raw_parts_mut(pinned.at.as_ptr().cast::<u8>(), bytes.len());
                staged.copy_from_slice(bytes);
                result::memcpy_htod_async(to, staged, self.stream.cu_stream()).map_err(fault)?;
            }
            let event = self.event()?;
            lock(&self.uploads).push_back((event, pinned));
            Ok(())
        })
    }

    fn download(&self, from: Address, bytes: usize) -> Result<Download, Fault> {
        self.ask(|| {
            let pinned = self.pinned(bytes)?;
            #[expect(unsafe_code, reason = "copies to memory that the copy owns")]
            // SAFETY: the memory is as large as the copy and lives until the copy is finished or the device is idle.
            unsafe {
                let into = std::slice::from_raw_parts_mut(pinned.at.as_ptr().cast::<u8>(), bytes);
                result::memcpy_dtoh_async(into, from, self.stream.cu_stream()).map_err(fault)?;
            }
            Ok(Download { pinned, bytes, event: self.event()? })
        })
    }

    fn finish(&self, download: Download) -> Result<Vec<u8>, Fault> {
        let Download { pinned, bytes, event } = download;
        let copied = self.ask(|| event.synchronize().map_err(fault)).map(|()| {
            #[expect(unsafe_code, reason = "reads what was copied")]
            // SAFETY: the copy has ended, and it wrote so many bytes.
            unsafe {
                std::slice::from_raw_parts(pinned.at.as_ptr().cast::<u8>(), bytes).to_vec()
            }
        });
        lock(&self.pinned).push(pinned);
        copied
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<(), Fault> {
        self.ask(|| {
            let function = self.function(launch.kernel, launch.shared)?;
            let pointers = launch.arguments.iter().map(|argument| match argument {
                Argument::Address(value) => std::ptr::from_ref(value).cast_mut().cast::<c_void>(),
                Argument::Int(value) => std::ptr::from_ref(value).cast_mut().cast(),
                Argument::Float(value) => std::ptr::from_ref(value).cast_mut().cast(),
            });
            let mut pointers: Vec<*mut c_void> = pointers.collect();
            let [x, y, z] = launch.grid;
            #[expect(unsafe_code, reason = "starts a kernel of our own")]
            // SAFETY: the arguments are those of the kernel, in its order; the driver copies them before it returns.
            let started = unsafe {
                result::launch_kernel(
                    function.cu_function(),
                    (x, y, z),
                    (launch.threads, 1, 1),
                    launch.shared,
                    self.stream.cu_stream(),
                    &mut pointers,
                )
            };
            started.map_err(|error| match fault(error) {
                Fault::Refused(why) => Fault::Refused(format!("start {launch:?}: {why}")),
                other => other,
            })
        })
    }

    fn multiply(&self, product: &Product) -> Result<(), Fault> {
        if let Some(blas) = &self.blas {
            return self.ask(|| blas.multiply(product, &self.stream));
        }
        let Product { weights, inputs, outputs, rows, width, depth, wide } = *product;
        let [weights, inputs, outputs] = [weights, inputs, outputs].map(Argument::Address);
        let [count, from, to] = [rows, depth, width].map(Argument::size);
        let kernel = if wide { "product_f32" } else { "product_bf16" };
        let grid = [width.div_ceil(32) as u32, rows.div_ceil(32) as u32, 1];
        let arguments = &[inputs, weights, outputs, count, from, to];
        self.launch(&Launch { kernel, grid, threads: 256, shared: 0, arguments })
    }

    fn rank(&self) -> Rank {
        self.member.as_ref().map_or(Rank::ALONE, |member| member.rank)
    }

    fn meeting(&self) -> Option<&Meeting> {
        self.member.as_ref().map(|member| &*member.meeting)
    }

    fn all_reduce(&self, at: Address, count: usize) -> Result<(), Fault> {
        self.with_others(|communicator, stream| communicator.all_reduce(at, count, stream))
    }

    fn broadcast(&self, at: Address, bytes: usize) -> Result<(), Fault> {
        self.with_others(|communicator, stream| communicator.broadcast(at, bytes, stream))
    }

    fn part(&self) {
        if let Some(Member { communicator, meeting, .. }) = &self.member {
            meeting.part();
            communicator.abort(Arc::clone(&self.context));
        }
    }

    fn is_lost(&self) -> bool {
        self.loss.get().is_some()
    }

    fn record(&self) -> Result<(), Fault> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.ask(|| self.stream.begin_capture(mode).map_err(fault))
    }

    fn recorded(&self) -> Result<Graph, Fault> {
        self.ask(|| {
            let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
            let graph = self.stream.end_capture(flags).map_err(fault)?;
            let graph = graph.ok_or_else(|| Fault::Refused("nothing was recorded".to_owned()))?;
            graph.upload().map_err(fault)?;
            Ok(Graph(graph))
        })
    }

    fn replay(&self, graph: &Graph) -> Result<(), Fault> {
        self.ask(|| graph.0.launch().map_err(fault))
    }

    fn synchronise(&self) -> Result<(), Fault> {
        self.ask(|| self.stream.synchronize().map_err(fault))
    }
}

impl Cuda {
    /// Comes when everything that was asked is done.
    fn event(&self) -> Result<CudaEvent, Fault> {
        let event = self.context.new_event(None).map_err(fault)?;
        event.record(&self.stream).map_err(fault)?;
        Ok(event)
    }

    /// Memory of the host of at least so many bytes.
    fn pinned(&self, bytes: usize) -> Result<Pinned, Fault> {
        let mut free = lock(&self.pinned);
        let mut uploads = lock(&self.uploads);
        while let Some((event, _)) = uploads.front() {
            if uploads.len() > UPLOADS_MAX {
                event.synchronize().map_err(fault)?;
            } else if !event.try_is_complete().map_err(fault)? {
                break;
            }
            free.extend(uploads.pop_front().map(|(_, pinned)| pinned));
        }
        drop(uploads);
        // The smallest that is large enough: answers are small and rows of logits are not.
        let fits = free.iter().enumerate().filter(|(_, pinned)| pinned.bytes >= bytes);
        if let Some(index) = fits.min_by_key(|(_, pinned)| pinned.bytes).map(|(index, _)| index) {
            return Ok(free.swap_remove(index));
        }
        let bytes = bytes.next_power_of_two().max(4_096);
        #[expect(unsafe_code, reason = "takes page-locked memory, so that copies do not wait")]
        // SAFETY: it is given back when the `Pinned` is dropped.
        let at = unsafe { result::malloc_host(bytes, 0).map_err(fault)? };
        let at = NonNull::new(at).ok_or_else(|| Fault::Refused("the driver gives no memory of the host".to_owned()))?;
        Ok(Pinned { at, bytes, context: Arc::clone(&self.context) })
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // Copies that nobody waited for write to memory that goes now.
        if let Err(why) = self.synchronise() {
            tracing::debug!(%why, "a GPU was given up before it was done");
        }
    }
}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cuda({}, {})", self.id, self.name)
    }
}

/// A recorded sequence. It belongs to one engine, whose thread alone uses it.
pub struct Graph(CudaGraph);

#[expect(unsafe_code, reason = "a graph may move to another thread, and is used by one at a time")]
// SAFETY: the driver asks that calls on a graph are not made at the same time; a `Graph` is not `Sync`.
unsafe impl Send for Graph {}

/// A copy to the host.
pub struct Download {
    pinned: Pinned,
    bytes: usize,
    event: CudaEvent,
}

/// Page-locked memory of the host.
struct Pinned {
    at: NonNull<c_void>,
    bytes: usize,
    context: Arc<CudaContext>,
}

#[expect(unsafe_code, reason = "memory of the host may move to another thread")]
// SAFETY: whoever holds it is its only user.
unsafe impl Send for Pinned {}

impl Drop for Pinned {
    fn drop(&mut self) {
        // A context that is lost takes its memory with it.
        if self.context.bind_to_thread().is_ok() {
            #[expect(unsafe_code, reason = "gives memory back")]
            // SAFETY: it was taken by `malloc_host`, and nobody else knows it.
            let freed = unsafe { result::free_host(self.at.as_ptr()) };
            if let Err(error) = freed {
                tracing::debug!(why = told(error), "page-locked memory was not given back");
            }
        }
    }
}

/// Matrix products by cuBLASLt; how each shape is multiplied is asked once.
struct Blas {
    handle: blas_sys::cublasLtHandle_t,
    workspace: Address,
    context: Arc<CudaContext>,
    plans: Mutex<BTreeMap<[usize; 4], Plan>>,
}

/// How one shape is multiplied.
struct Plan {
    description: blas_sys::cublasLtMatmulDesc_t,
    weights: blas_sys::cublasLtMatrixLayout_t,
    inputs: blas_sys::cublasLtMatrixLayout_t,
    outputs: blas_sys::cublasLtMatrixLayout_t,
    algorithm: blas_sys::cublasLtMatmulAlgo_t,
}

#[expect(unsafe_code, reason = "handles of cuBLASLt may be used by any thread")]
// SAFETY: cuBLASLt's handle and descriptions are safe to use from several threads; plans are behind a lock.
unsafe impl Send for Blas {}
#[expect(unsafe_code, reason = "handles of cuBLASLt may be used by any thread")]
// SAFETY: as above.
unsafe impl Sync for Blas {}

fn blas_fault(error: blas::CublasError) -> Fault {
    use blas_sys::cublasStatus_t as Status;
    match error.0 {
        Status::CUBLAS_STATUS_EXECUTION_FAILED | Status::CUBLAS_STATUS_INTERNAL_ERROR => {
            Fault::Lost(format!("cuBLASLt: {error}"))
        }
        _ => Fault::Refused(format!("cuBLASLt: {error}")),
    }
}

impl Blas {
    fn new(context: &Arc<CudaContext>) -> Result<Self, Fault> {
        context.bind_to_thread().map_err(fault)?;
        let handle = blas::create_handle().map_err(blas_fault)?;
        #[expect(unsafe_code, reason = "takes memory")]
        // SAFETY: it is given back in `drop`.
        let workspace = unsafe { result::malloc_sync(WORKSPACE).map_err(fault)? };
        Ok(Self { handle, workspace, context: Arc::clone(context), plans: Mutex::default() })
    }

    fn multiply(&self, product: &Product, stream: &CudaStream) -> Result<(), Fault> {
        let Product { rows, width, depth, wide, .. } = *product;
        let mut plans = lock(&self.plans);
        let key = [rows, width, depth, usize::from(wide)];
        let plan = match plans.entry(key) {
            Entry::Occupied(plan) => plan.into_mut(),
            Entry::Vacant(place) => place.insert(self.plan(product).map_err(|fault| match fault {
                Fault::Refused(why) => Fault::Refused(format!("multiply {product:?}: {why}")),
                other => other,
            })?),
        };
        let (one, zero) = (1.0_f32, 0.0_f32);
        #[expect(unsafe_code, reason = "multiplies")]
        // SAFETY: the plan is for these dimensions, and the caller's buffers have them.
        let done = unsafe {
            blas::matmul(
                self.handle,
                plan.description,
                (&raw const one).cast(),
                (&raw const zero).cast(),
                product.weights as *const c_void,
                plan.weights,
                product.inputs as *const c_void,
                plan.inputs,
                product.outputs as *const c_void,
                plan.outputs,
                product.outputs as *mut c_void,
                plan.outputs,
                &raw const plan.algorithm,
                self.workspace as *mut c_void,
                WORKSPACE,
                stream.cu_stream().cast(),
            )
        };
        done.map_err(blas_fault)
    }

    /// cuBLASLt's matrices are column-major: a row-major matrix is its transpose there.
    fn plan(&self, product: &Product) -> Result<Plan, Fault> {
        use blas_sys::{
            cublasComputeType_t::CUBLAS_COMPUTE_32F,
            cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
            cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            cudaDataType_t::{CUDA_R_16BF, CUDA_R_32F},
        };
        let (rows, width, depth) = (product.rows as u64, product.width as u64, product.depth as u64);
        let kind = if product.wide { CUDA_R_32F } else { CUDA_R_16BF };
        let layout =
            |kind, rows, columns: u64| blas::create_matrix_layout(kind, rows, columns, rows as i64).map_err(blas_fault);
        let description = blas::create_matmul_desc(CUBLAS_COMPUTE_32F, CUDA_R_32F).map_err(blas_fault)?;
        let weights = layout(CUDA_R_16BF, depth, width)?;
        let inputs = layout(CUDA_R_16BF, depth, rows)?;
        let outputs = layout(kind, width, rows)?;
        let preference = blas::create_matmul_pref().map_err(blas_fault)?;
        let (transposed, workspace) = (1_i32, WORKSPACE);
        #[expect(unsafe_code, reason = "describes a product")]
        // SAFETY: each attribute is read from a value of its type before the call returns.
        let found = unsafe {
            blas::set_matmul_desc_attribute(
                description,
                CUBLASLT_MATMUL_DESC_TRANSA,
                (&raw const transposed).cast(),
                size_of::<i32>(),
            )
            .and_then(|()| {
                blas::set_matmul_pref_attribute(
                    preference,
                    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                    (&raw const workspace).cast(),
                    size_of::<usize>(),
                )
            })
            .and_then(|()| {
                blas::get_matmul_algo_heuristic(self.handle, description, weights, inputs, outputs, outputs, preference)
            })
        };
        #[expect(unsafe_code, reason = "gives back what only the question needed")]
        // SAFETY: nobody else holds it.
        let given_back = unsafe { blas::destroy_matmul_pref(preference) };
        given_back.map_err(blas_fault)?;
        let algorithm = found.map_err(blas_fault)?.algo;
        Ok(Plan { description, weights, inputs, outputs, algorithm })
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_err() {
            return;
        }
        #[expect(unsafe_code, reason = "gives everything back")]
        // SAFETY: nothing is multiplied any more, and each handle was made once. What a lost device refuses is lost anyway.
        unsafe {
            for plan in lock(&self.plans).values() {
                let _ = blas::destroy_matmul_desc(plan.description);
                for layout in [plan.weights, plan.inputs, plan.outputs] {
                    let _ = blas::destroy_matrix_layout(layout);
                }
            }
            let _ = blas::destroy_handle(self.handle);
            let _ = result::free_sync(self.workspace);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic while the lock is held")
}
