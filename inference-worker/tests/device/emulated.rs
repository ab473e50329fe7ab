//! A device whose memory is the host's and whose kernels are those of the GPU, compiled for the host.
//!
//! It is stricter than a GPU. Nothing is done before somebody waits for it, so whoever reads too early finds that out. A
//! recording keeps its addresses and numbers, and does what it was recorded to do with what lies there then. Memory that
//! was given back is gone, and whoever touches it ends the process.

use std::{
    collections::BTreeMap,
    ffi::c_void,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use half::bf16;
use inference_worker::{
    cuda::device::{Address, Argument, Device, Fault, Launch, Memory, Product},
    parallel::{Meeting, Rank},
};

use crate::kernels::{self, Order};

/// The device.
#[derive(Debug)]
pub(crate) struct Emulated {
    state: Mutex<State>,
    total: usize,
    /// What is still done before the device is lost.
    left: AtomicUsize,
    /// It records nothing.
    forgets: AtomicBool,
    /// Recordings that were replayed.
    pub(crate) replayed: AtomicUsize,
    rank: Rank,
    /// Where threads meet, and where devices do; none where it computes alone.
    meetings: Option<[Arc<Meeting>; 2]>,
}

#[derive(Debug, Default)]
struct State {
    allocated: BTreeMap<Address, usize>,
    queue: Vec<Asked>,
    recording: Option<Vec<Asked>>,
    launched: BTreeMap<&'static str, usize>,
    lost: bool,
}

#[derive(Debug, Clone)]
enum Asked {
    Upload(Arc<Vec<u8>>, Address),
    Download(Address, usize, Arc<Mutex<Option<Vec<u8>>>>),
    Launch { kernel: &'static str, grid: [u32; 3], threads: u32, shared: u32, arguments: Vec<Argument> },
    Multiply(Product),
    AllReduce(Address, usize),
    Broadcast(Address, usize),
}

/// A copy that is made when somebody waits.
pub(crate) struct Download(Arc<Mutex<Option<Vec<u8>>>>);

/// What was recorded.
pub(crate) struct Graph(Vec<Asked>);

impl Emulated {
    /// One with so much memory.
    pub(crate) fn new(total: usize) -> Arc<Self> {
        Arc::new(Self::of_rank(total, Rank::ALONE, None))
    }

    /// Several with so much memory each, which compute together.
    pub(crate) fn ranks(total: usize, of: usize) -> Vec<Arc<Self>> {
        let meetings = [Meeting::of(of), Meeting::of(of)];
        Rank::all(of).map(|rank| Arc::new(Self::of_rank(total, rank, Some(meetings.clone())))).collect()
    }

    fn of_rank(total: usize, rank: Rank, meetings: Option<[Arc<Meeting>; 2]>) -> Self {
        Self {
            state: Mutex::default(),
            total,
            left: AtomicUsize::new(usize::MAX),
            forgets: AtomicBool::new(false),
            replayed: AtomicUsize::new(0),
            rank,
            meetings,
        }
    }

    /// It is lost once it has done so much more.
    pub(crate) fn lose_after(&self, left: usize) {
        self.left.store(left, Ordering::SeqCst);
    }

    /// It refuses to record from now on.
    pub(crate) fn forget(&self) {
        self.forgets.store(true, Ordering::SeqCst);
    }

    /// Bytes that are taken.
    pub(crate) fn taken(&self) -> usize {
        self.lock().allocated.values().sum()
    }

    /// How often kernels whose names begin so were run.
    pub(crate) fn launched(&self, kernels: &str) -> usize {
        let state = self.lock();
        state.launched.iter().filter(|(kernel, _)| kernel.starts_with(kernels)).map(|(_, times)| times).sum()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn ask(&self, asked: Asked, recordable: bool) -> Result<(), Fault> {
        let mut state = self.lock();
        if state.lost {
            return Err(lost());
        }
        match &mut state.recording {
            Some(recording) => {
                assert!(recordable, "{asked:?} cannot be recorded");
                recording.push(asked);
            }
            None => state.queue.push(asked),
        }
        Ok(())
    }

    /// Does all that was asked.
    fn run(&self) -> Result<(), Fault> {
        let mut state = self.lock();
        assert!(state.recording.is_none(), "nobody waits in a recording");
        for asked in std::mem::take(&mut state.queue) {
            let left = self.left.load(Ordering::SeqCst);
            if left == 0 {
                state.lost = true;
            }
            if state.lost {
                return Err(lost());
            }
            self.left.store(left.saturating_sub(usize::from(left != usize::MAX)), Ordering::SeqCst);
            match asked {
                Asked::AllReduce(at, count) => self.sum(&state, at, count)?,
                Asked::Broadcast(at, bytes) => {
                    let all = self.exchange(state.bytes(at, bytes).to_vec())?;
                    state.bytes(at, bytes).copy_from_slice(&all[0]);
                }
                asked => state.run(asked)?,
            }
        }
        if state.lost { Err(lost()) } else { Ok(()) }
    }
}

impl Emulated {
    /// What lies there on all ranks, in the order of ranks. As on GPUs only devices wait for each other, never whoever asks.
    fn exchange(&self, own: Vec<u8>) -> Result<Arc<Vec<Vec<u8>>>, Fault> {
        let [_, devices] = self.meetings.as_ref().expect("there are other ranks");
        devices.exchange(self.rank.index, own).map_err(|parted| Fault::Lost(parted.to_string()))
    }

    fn sum(&self, state: &State, at: Address, count: usize) -> Result<(), Fault> {
        let all = self.exchange(state.bytes(at, count * 2).to_vec())?;
        assert!(all.iter().all(|bytes| bytes.len() == count * 2), "all ranks sum as much");
        for (number, out) in state.bytes(at, count * 2).as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let of_rank = |bytes: &Vec<u8>| bf16::from_le_bytes(bytes.as_chunks::<2>().0[number]).to_f32();
            *out = bf16::from_f32(all.iter().map(of_rank).sum()).to_le_bytes();
        }
        Ok(())
    }

    fn ask_others(&self, asked: Asked) -> Result<(), Fault> {
        if self.meetings.is_some() { self.ask(asked, true) } else { Ok(()) }
    }
}

fn lost() -> Fault {
    Fault::Lost("it fell off the bus".to_owned())
}

impl State {
    fn run(&mut self, asked: Asked) -> Result<(), Fault> {
        match asked {
            Asked::Upload(bytes, to) => self.bytes(to, bytes.len()).copy_from_slice(&bytes),
            Asked::Download(from, bytes, into) => *into.lock().unwrap() = Some(self.bytes(from, bytes).to_vec()),
            Asked::Launch { kernel, grid, threads, shared, mut arguments } => {
                let mut pointers: Vec<*mut c_void> = arguments
                    .iter_mut()
                    .map(|argument| match argument {
                        Argument::Address(value) => std::ptr::from_mut(value).cast(),
                        Argument::Int(value) => std::ptr::from_mut(value).cast(),
                        Argument::Float(value) => std::ptr::from_mut(value).cast(),
                    })
                    .collect();
                *self.launched.entry(kernel).or_default() += 1;
                kernels::Emulated::get()
                    .launch(kernel, grid, threads, shared, &mut pointers, Order::Forward)
                    .map_err(Fault::Refused)?;
            }
            Asked::Multiply(product) => self.multiply(&product),
            Asked::AllReduce(..) | Asked::Broadcast(..) => unreachable!("they need the other ranks"),
        }
        Ok(())
    }

    /// Bytes of one allocation.
    #[expect(clippy::mut_from_ref, reason = "the device's memory is written by its queue alone")]
    fn bytes(&self, at: Address, count: usize) -> &mut [u8] {
        let (&start, &length) = self.allocated.range(..=at).next_back().expect("an address of the device");
        assert!((at - start) as usize + count <= length, "{count} bytes at {at:#x} are not in {length} at {start:#x}");
        #[expect(unsafe_code, reason = "the device's memory is the host's")]
        // SAFETY: the range lies in memory that is allocated, and the lock on the state is held.
        unsafe {
            std::slice::from_raw_parts_mut(at as *mut u8, count)
        }
    }

    fn multiply(&self, product: &Product) {
        let Product { rows, width, depth, wide, .. } = *product;
        let floats = |bytes: &[u8]| -> Vec<f32> {
            bytes.as_chunks::<2>().0.iter().map(|bits| bf16::from_le_bytes(*bits).to_f32()).collect()
        };
        let weights = floats(self.bytes(product.weights, width * depth * 2));
        let inputs = floats(self.bytes(product.inputs, rows * depth * 2));
        let out = self.bytes(product.outputs, rows * width * if wide { 4 } else { 2 });
        for row in 0..rows {
            for column in 0..width {
                let (x, w) = (&inputs[row * depth..][..depth], &weights[column * depth..][..depth]);
                let sum: f32 = x.iter().zip(w).map(|(x, w)| x * w).sum();
                let at = row * width + column;
                if wide {
                    out[at * 4..][..4].copy_from_slice(&sum.to_le_bytes());
                } else {
                    out[at * 2..][..2].copy_from_slice(&bf16::from_f32(sum).to_le_bytes());
                }
            }
        }
    }
}

impl Device for Emulated {
    type Graph = Graph;
    type Download = Download;

    fn name(&self) -> String {
        match self.meetings {
            None => "the emulated GPU".to_owned(),
            Some(_) => format!("emulated GPU {}", self.rank.index),
        }
    }

    fn processors(&self) -> usize {
        // So few that contexts are cut in two or three, and not in a hundred.
        4
    }

    fn memory(&self) -> Result<Memory, Fault> {
        let state = self.lock();
        if state.lost {
            return Err(lost());
        }
        Ok(Memory { free: self.total - state.allocated.values().sum::<usize>(), total: self.total })
    }

    fn allocate(&self, bytes: usize) -> Result<Address, Fault> {
        let free = self.memory()?.free;
        if bytes > free {
            return Err(Fault::Memory { wanted: bytes, free });
        }
        let address = kernels::Emulated::get().allocate(bytes, true) as Address;
        let mut state = self.lock();
        assert!(state.recording.is_none(), "memory cannot be taken in a recording");
        state.allocated.insert(address, bytes);
        state.bytes(address, bytes).fill(0);
        Ok(address)
    }

    fn free(&self, address: Address) {
        // What was asked before may use it. On a lost device nothing more is done.
        if self.run().is_err() {
            self.lock().queue.clear();
        }
        let bytes = self.lock().allocated.remove(&address).expect("it is given back once");
        #[expect(unsafe_code, reason = "gives memory back")]
        // SAFETY: it was allocated with so many bytes, and everything that was asked of it is done.
        unsafe {
            kernels::Emulated::get().release(address as *mut c_void, bytes);
        }
    }

    fn upload(&self, bytes: &[u8], to: Address) -> Result<(), Fault> {
        self.ask(Asked::Upload(Arc::new(bytes.to_vec()), to), false)
    }

    fn download(&self, from: Address, bytes: usize) -> Result<Download, Fault> {
        let into = Arc::new(Mutex::new(None));
        self.ask(Asked::Download(from, bytes, Arc::clone(&into)), false)?;
        Ok(Download(into))
    }

    fn finish(&self, download: Download) -> Result<Vec<u8>, Fault> {
        // Only what was asked before it: the rest may still change.
        let rest = {
            let mut state = self.lock();
            let this = |asked: &Asked| matches!(asked, Asked::Download(_, _, into) if Arc::ptr_eq(into, &download.0));
            match state.queue.iter().position(this) {
                Some(at) => state.queue.split_off(at + 1),
                None => Vec::new(),
            }
        };
        let done = if download.0.lock().unwrap().is_some() { Ok(()) } else { self.run() };
        let mut state = self.lock();
        let mut queue = std::mem::take(&mut state.queue);
        queue.extend(rest);
        state.queue = queue;
        drop(state);
        done?;
        Ok(download.0.lock().unwrap().take().expect("it was copied"))
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<(), Fault> {
        let Launch { kernel, grid, threads, shared, arguments } = *launch;
        self.ask(Asked::Launch { kernel, grid, threads, shared, arguments: arguments.to_vec() }, true)
    }

    fn multiply(&self, product: &Product) -> Result<(), Fault> {
        self.ask(Asked::Multiply(*product), true)
    }

    fn rank(&self) -> Rank {
        self.rank
    }

    fn meeting(&self) -> Option<&Meeting> {
        self.meetings.as_ref().map(|[threads, _]| &**threads)
    }

    fn all_reduce(&self, at: Address, count: usize) -> Result<(), Fault> {
        self.ask_others(Asked::AllReduce(at, count))
    }

    fn broadcast(&self, at: Address, bytes: usize) -> Result<(), Fault> {
        self.ask_others(Asked::Broadcast(at, bytes))
    }

    fn part(&self) {
        self.meetings.iter().flatten().for_each(|meeting| meeting.part());
    }

    fn is_lost(&self) -> bool {
        self.lock().lost
    }

    fn record(&self) -> Result<(), Fault> {
        let mut state = self.lock();
        assert!(state.recording.is_none(), "one recording at a time");
        state.recording = Some(Vec::new());
        Ok(())
    }

    fn recorded(&self) -> Result<Graph, Fault> {
        let recorded = self.lock().recording.take().expect("it was begun");
        if self.forgets.load(Ordering::SeqCst) {
            return Err(Fault::Refused("it cannot record".to_owned()));
        }
        Ok(Graph(recorded))
    }

    fn replay(&self, graph: &Graph) -> Result<(), Fault> {
        self.replayed.fetch_add(1, Ordering::SeqCst);
        graph.0.iter().try_for_each(|asked| self.ask(asked.clone(), true))
    }

    fn synchronise(&self) -> Result<(), Fault> {
        self.run()
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.taken(), 0, "all memory is given back");
        }
    }
}
