//! What the decoder needs of a device: memory, kernels by name, matrix products, sums over the devices that compute a model
//! together, and recorded sequences of these.
//!
//! A device has one queue. What is asked of it is done in the order in which it is asked, and later: only `finish` and
//! `synchronise` wait. Memory is named by addresses, because a recorded sequence keeps using those it was recorded with;
//! whoever replays it writes new inputs to the same places. Addresses come from `allocate` alone, and the kernels are our
//! own, so a launch here is as safe as the sizes its caller works out.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use crate::parallel::{Meeting, Rank};

/// A place in the memory of a device.
pub type Address = u64;

/// Why a device did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It has too little memory left.
    #[error("the GPU has too little memory: {wanted} bytes are wanted, and {free} are free")]
    Memory {
        /// Bytes that were asked for.
        wanted: usize,
        /// Bytes that were free.
        free: usize,
    },
    /// It does not compute any more: a kernel failed, or the card is gone. Everything on it is lost.
    #[error("the GPU was lost: {0}")]
    Lost(String),
    /// It refuses this; the text says why.
    #[error("the GPU refuses: {0}")]
    Refused(String),
}

/// Memory of a device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Not taken by anyone.
    pub free: usize,
    /// All there is.
    pub total: usize,
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Argument {
    /// Where something lies.
    Address(Address),
    /// A whole number (`int`).
    Int(i32),
    /// A number (`float`).
    Float(f32),
}

impl Argument {
    /// A size, which no kernel takes above 2^31.
    ///
    /// # Panics
    /// It is larger: whoever works out launches bounds them.
    pub fn size(size: usize) -> Self {
        Self::Int(i32::try_from(size).expect("sizes of launches are bounded"))
    }
}

/// A kernel with everything it is started with.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch<'a> {
    /// Its name in the sources.
    pub kernel: &'static str,
    /// Blocks in each direction.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory that are asked for at the launch.
    pub shared: u32,
    /// In the order of the kernel's parameters.
    pub arguments: &'a [Argument],
}

/// `outputs[rows, width] = inputs[rows, depth] * weights[width, depth]^T`, all row-major; inputs and weights in bf16, sums
/// in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Product {
    /// The matrix of a layer.
    pub weights: Address,
    /// Activations.
    pub inputs: Address,
    /// Where the result goes.
    pub outputs: Address,
    /// Rows of activations.
    pub rows: usize,
    /// Width of a row of results.
    pub width: usize,
    /// Width of a row of activations.
    pub depth: usize,
    /// Results are f32, not bf16.
    pub wide: bool,
}

/// A device with one queue.
pub trait Device: fmt::Debug + Send + Sync + 'static {
    /// A recorded sequence.
    type Graph: Send;
    /// A copy to the host that is under way.
    type Download: Send;

    /// What it is called, with what tells it from others.
    fn name(&self) -> String;

    /// How many blocks of threads it computes side by side, about.
    fn processors(&self) -> usize;

    /// Its memory now.
    ///
    /// # Errors
    /// It is lost.
    fn memory(&self) -> Result<Memory, Fault>;

    /// Takes memory; its content is zeros.
    ///
    /// # Errors
    /// There is too little, or the device is lost.
    fn allocate(&self, bytes: usize) -> Result<Address, Fault>;

    /// Gives memory back when everything asked before is done.
    fn free(&self, address: Address);

    /// Copies from the host. The bytes may change as soon as it returns.
    ///
    /// # Errors
    /// The device is lost.
    fn upload(&self, bytes: &[u8], to: Address) -> Result<(), Fault>;

    /// Begins to copy to the host what lies there when everything asked before is done.
    ///
    /// # Errors
    /// The device is lost.
    fn download(&self, from: Address, bytes: usize) -> Result<Self::Download, Fault>;

    /// Waits for a copy, and with it for everything that was asked before it.
    ///
    /// # Errors
    /// The device is lost.
    fn finish(&self, download: Self::Download) -> Result<Vec<u8>, Fault>;

    /// Starts a kernel.
    ///
    /// # Errors
    /// There is no such kernel, it cannot be started so, or the device is lost.
    fn launch(&self, launch: &Launch<'_>) -> Result<(), Fault>;

    /// Multiplies.
    ///
    /// # Errors
    /// The device cannot multiply such shapes, or is lost.
    fn multiply(&self, product: &Product) -> Result<(), Fault>;

    /// Its place among those that compute a model together.
    fn rank(&self) -> Rank;

    /// Where the threads of these ranks meet; none where it computes alone.
    fn meeting(&self) -> Option<&Meeting>;

    /// Replaces so many numbers of bf16 by their sums over all ranks, the same bits everywhere. All ranks ask for it in
    /// the same order; one that computes alone does nothing.
    ///
    /// # Errors
    /// The devices do not reach each other, or this one is lost.
    fn all_reduce(&self, at: Address, count: usize) -> Result<(), Fault>;

    /// Replaces bytes by what lies there on rank 0. All ranks ask for it in the same order; one that computes alone does
    /// nothing.
    ///
    /// # Errors
    /// The devices do not reach each other, or this one is lost.
    fn broadcast(&self, at: Address, bytes: usize) -> Result<(), Fault>;

    /// The ranks compute together no more: what waits here for another ends, with an error or with anything, and whatever
    /// needs another from now on is an error.
    fn part(&self);

    /// Whether this one is lost: not another rank, and not the way between them.
    fn is_lost(&self) -> bool;

    /// From now on launches, products, sums over ranks and copies from rank 0 are recorded and not done. Nothing else may be
    /// asked until `recorded`.
    ///
    /// # Errors
    /// The device is lost.
    fn record(&self) -> Result<(), Fault>;

    /// Ends the recording.
    ///
    /// # Errors
    /// Something was asked that cannot be recorded, or the device is lost.
    fn recorded(&self) -> Result<Self::Graph, Fault>;

    /// Does everything that was recorded, with the addresses and numbers it was recorded with.
    ///
    /// # Errors
    /// The device is lost.
    fn replay(&self, graph: &Self::Graph) -> Result<(), Fault>;

    /// Waits until everything is done.
    ///
    /// # Errors
    /// The device is lost.
    fn synchronise(&self) -> Result<(), Fault>;
}

/// Memory of a device that is given back when it is dropped.
pub struct Buffer<D: Device> {
    device: Arc<D>,
    address: Address,
    bytes: usize,
}

impl<D: Device> Buffer<D> {
    /// Takes memory; its content is zeros. Of no bytes one is taken, so that every buffer has an address.
    ///
    /// # Errors
    /// There is too little, or the device is lost.
    pub fn zeros(device: &Arc<D>, bytes: usize) -> Result<Self, Fault> {
        let bytes = bytes.max(1);
        Ok(Self { address: device.allocate(bytes)?, device: Arc::clone(device), bytes })
    }

    /// Takes memory for these bytes and copies them there.
    ///
    /// # Errors
    /// There is too little, or the device is lost.
    pub fn of(device: &Arc<D>, bytes: &[u8]) -> Result<Self, Fault> {
        let buffer = Self::zeros(device, bytes.len())?;
        buffer.write(0, bytes)?;
        Ok(buffer)
    }

    /// Copies bytes to a place in it.
    ///
    /// # Errors
    /// The device is lost.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), Fault> {
        assert!(offset + bytes.len() <= self.bytes, "{} bytes at {offset} of {}", bytes.len(), self.bytes);
        if bytes.is_empty() { Ok(()) } else { self.device.upload(bytes, self.address + offset as u64) }
    }

    /// Where it lies.
    pub fn address(&self) -> Address {
        self.address
    }

    /// A place in it.
    pub fn at(&self, offset: usize) -> Address {
        assert!(offset < self.bytes, "offset {offset} of {}", self.bytes);
        self.address + offset as u64
    }

    /// How large it is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl<D: Device> Drop for Buffer<D> {
    fn drop(&mut self) {
        self.device.free(self.address);
    }
}

impl<D: Device> fmt::Debug for Buffer<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({:#x}, {} bytes)", self.address, self.bytes)
    }
}

/// Remembers the first loss of a device: whatever comes after it says the same.
#[derive(Debug, Default)]
pub struct Loss(Mutex<Option<String>>);

impl Loss {
    /// Why the device was lost, if it was.
    pub fn get(&self) -> Option<String> {
        self.0.lock().expect("no panic while the lock is held").clone()
    }

    /// Remembers a loss, and passes the fault on.
    pub fn note(&self, fault: Fault) -> Fault {
        if let Fault::Lost(why) = &fault {
            self.0.lock().expect("no panic while the lock is held").get_or_insert_with(|| why.clone());
        }
        fault
    }
}
