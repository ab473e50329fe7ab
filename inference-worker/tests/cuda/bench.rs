//! Where a kernel is tried: on the host, in several orders of its threads, and on the GPU of this machine if it has one.
#![allow(unsafe_code, reason = "memory that kernels use is read and given back")]

use std::{
    ffi::c_void,
    fmt::Debug,
    marker::PhantomData,
    sync::{Arc, OnceLock},
};

use inference_worker::cuda::{
    device::{Argument, Buffer as OnGpu, Device, Launch},
    driver::{self, Cuda},
};

use crate::emulated::{Emulated, Order};

/// A place to run kernels.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bench {
    /// The host: one order of threads, and one side at which buffers are guarded.
    Host { order: Order, guarded_at_end: bool },
    /// A GPU.
    Gpu(&'static Arc<Cuda>),
}

/// What comes of something on the host, in several orders of threads, which must change nothing, and on a GPU if there is
/// one, which may round otherwise.
pub(crate) fn everywhere<T: PartialEq + Debug>(run: impl Fn(Bench) -> T) -> Vec<T> {
    let forward = run(Bench::Host { order: Order::Forward, guarded_at_end: true });
    for order in [Order::Backward, Order::Shuffled(7)] {
        let other = run(Bench::Host { order, guarded_at_end: false });
        assert!(other == forward, "the order {order:?} changes what comes out");
    }
    let on_gpu = gpu().map(|gpu| {
        println!("on {}", gpu.name());
        run(Bench::Gpu(gpu))
    });
    std::iter::once(forward).chain(on_gpu).collect()
}

/// The first GPU, unless it cannot be used, or there is none.
fn gpu() -> Option<&'static Arc<Cuda>> {
    static GPU: OnceLock<Option<Arc<Cuda>>> = OnceLock::new();
    let open = || match driver::find() {
        Err(why) => {
            println!("on the host only: {why}");
            None
        }
        // One that is there has to work.
        Ok(found) => Some(Arc::new(Cuda::open(found[0].id).unwrap())),
    };
    GPU.get_or_init(open).as_ref()
}

impl Bench {
    /// A copy of values.
    pub(crate) fn holding<T: Number>(self, values: &[T]) -> Buffer<T> {
        // SAFETY: numbers have no padding.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
        let memory = match self {
            Self::Host { guarded_at_end, .. } => {
                let memory = Emulated::get().allocate(bytes.len(), guarded_at_end);
                // SAFETY: there is room for them.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), memory.cast(), bytes.len()) };
                Memory::Host(memory)
            }
            Self::Gpu(gpu) => Memory::Gpu(gpu, OnGpu::of(gpu, bytes).unwrap()),
        };
        Buffer { memory, length: values.len(), of: PhantomData }
    }

    /// Room for so many, all of whose bits are set: a NaN, where they are floats.
    pub(crate) fn empty<T: Number>(self, length: usize) -> Buffer<T> {
        self.holding(&vec![T::UNSET; length])
    }

    /// Runs a kernel.
    pub(crate) fn launch(
        self,
        kernel: &'static str,
        grid: [usize; 3],
        threads: u32,
        shared: u32,
        parameters: &[&dyn Parameter],
    ) {
        let arguments: Vec<Argument> = parameters.iter().map(|parameter| parameter.argument()).collect();
        let grid = grid.map(|size| u32::try_from(size).unwrap());
        let order = match self {
            Self::Host { order, .. } => order,
            Self::Gpu(gpu) => {
                gpu.launch(&Launch { kernel, grid, threads, shared, arguments: &arguments }).unwrap();
                return gpu.synchronise().unwrap();
            }
        };
        let bits = |argument: &Argument| match *argument {
            Argument::Address(address) => address,
            Argument::Int(number) => u64::from(number as u32),
            Argument::Float(number) => u64::from(number.to_bits()),
        };
        let mut words: Vec<u64> = arguments.iter().map(bits).collect();
        let mut pointers: Vec<*mut c_void> = words.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
        Emulated::get().launch(kernel, grid, threads, shared, &mut pointers, order).unwrap();
    }
}

/// A number that any bits are.
pub(crate) trait Number: Copy {
    /// All bits set.
    const UNSET: Self;
}

impl Number for u8 {
    const UNSET: Self = Self::MAX;
}

impl Number for u16 {
    const UNSET: Self = Self::MAX;
}

impl Number for u32 {
    const UNSET: Self = Self::MAX;
}

impl Number for f32 {
    const UNSET: Self = Self::from_bits(u32::MAX);
}

impl Number for half::bf16 {
    const UNSET: Self = Self::from_bits(u16::MAX);
}

/// Values that a kernel works on.
#[derive(Debug)]
pub(crate) struct Buffer<T> {
    memory: Memory,
    length: usize,
    of: PhantomData<T>,
}

#[derive(Debug)]
enum Memory {
    Host(*mut c_void),
    Gpu(&'static Arc<Cuda>, OnGpu<Cuda>),
}

impl<T: Number> Buffer<T> {
    /// What is in it.
    pub(crate) fn values(&self) -> Vec<T> {
        let mut values = vec![T::UNSET; self.length];
        let bytes = size_of_val(values.as_slice());
        let downloaded;
        let from = match &self.memory {
            Memory::Host(memory) => memory.cast::<u8>().cast_const(),
            Memory::Gpu(gpu, buffer) => {
                downloaded = gpu.download(buffer.address(), bytes).and_then(|download| gpu.finish(download)).unwrap();
                assert_eq!(downloaded.len(), bytes);
                downloaded.as_ptr()
            }
        };
        // SAFETY: there are so many bytes, and any are numbers.
        unsafe { std::ptr::copy_nonoverlapping(from, values.as_mut_ptr().cast(), bytes) };
        values
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if let Memory::Host(memory) = self.memory {
            // SAFETY: it was allocated with this size.
            unsafe { Emulated::get().release(memory, self.length * size_of::<T>()) }
        }
    }
}

/// What a kernel takes.
pub(crate) trait Parameter {
    /// As it is passed.
    fn argument(&self) -> Argument;
}

impl<T> Parameter for Buffer<T> {
    fn argument(&self) -> Argument {
        Argument::Address(match &self.memory {
            Memory::Host(memory) => *memory as u64,
            Memory::Gpu(_, buffer) => buffer.address(),
        })
    }
}

/// `None` is a null pointer.
impl<T> Parameter for Option<Buffer<T>> {
    fn argument(&self) -> Argument {
        self.as_ref().map_or(Argument::Address(0), Parameter::argument)
    }
}

impl Parameter for usize {
    fn argument(&self) -> Argument {
        Argument::size(*self)
    }
}

impl Parameter for u32 {
    fn argument(&self) -> Argument {
        Argument::Int(*self as i32)
    }
}

impl Parameter for f32 {
    fn argument(&self) -> Argument {
        Argument::Float(*self)
    }
}
