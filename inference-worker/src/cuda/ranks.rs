//! A model that several devices compute together (tensor parallelism): the same steps on each, over its own part of the
//! weights and of the cache.
//!
//! A thread serves each rank; the engine's own serves the first, which leads. One thread for all would have to ask every
//! device for one sum before it asks any for the next, in groups, and would be as slow as their number. So each asks its
//! own device for whole steps, as if it were alone, and only the devices wait for each other, in their sums. What holds:
//!
//! - All ranks get the same steps in the same order, the leader last; so nobody waits for a step that another was not given.
//! - The leader alone has logits and picks. Its tokens are copied to the other devices behind the step, where the next
//!   finds them; so ranks never disagree about a token, whatever their products round to.
//! - A shape is recorded on all ranks or on none, since a sum that is replayed does not meet one that is asked for.
//! - The first fault of any rank ends all: it parts the devices, so that nobody waits for what will not come, and it is
//!   what everyone says.

use std::{
    fmt,
    sync::{Arc, Mutex, mpsc},
    thread::JoinHandle,
};

use super::{
    OnDevice, Started,
    decoder::{Decoder, LoadError},
    device::{Device, Fault},
    steps::{Prepared, Steps},
};
use crate::{
    architecture::Architecture,
    compute::{Allowed, Compute, Row, Step},
    engine::EngineConfig,
    kv::Blocks,
    prefixes::Prefixes,
    weights::Weights,
};

/// A decoder whose parts lie on several devices.
#[derive(Debug)]
pub struct Together<D: Device> {
    /// Of the whole model.
    architecture: Architecture,
    /// In the order of ranks.
    parts: Vec<Arc<Decoder<D>>>,
}

impl<D: Device> Together<D> {
    /// Reads the weights of the given shape, each tensor once, and gives each device its part.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, the kernels do not compute the shape, it cannot be shared by so many
    /// devices, or one of them has no room.
    pub fn load(devices: &[Arc<D>], a: &Architecture, weights: &impl Weights) -> Result<Self, LoadError> {
        let parts = Decoder::load_across(devices, a, weights)?;
        Ok(Self { architecture: a.clone(), parts: parts.into_iter().map(Arc::new).collect() })
    }
}

impl<D: Device> OnDevice for Together<D> {
    fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.bytes()).sum()
    }

    fn place(&self) -> String {
        let names: Vec<String> = self.parts.iter().map(|part| part.device.name()).collect();
        names.join(" with ")
    }

    fn devices(&self) -> usize {
        self.parts.len()
    }

    fn lost(&self) -> Vec<usize> {
        let lost = |(rank, part): (usize, &Arc<Decoder<D>>)| part.device.is_lost().then_some(rank);
        self.parts.iter().enumerate().filter_map(lost).collect()
    }

    fn start(self: Arc<Self>, config: &EngineConfig) -> Result<Started, Fault> {
        let ranks = Ranks::new(&self.parts, config)?;
        let blocks = ranks.blocks();
        Ok(Started { computer: Box::new(ranks), blocks })
    }
}

/// What computes the steps of one engine on several devices.
pub struct Ranks<D: Device> {
    /// None once it ends.
    leader: Option<Steps<D>>,
    followers: Vec<Follower>,
    bond: Arc<Bond<D>>,
}

/// The devices, and why they compute together no more.
struct Bond<D: Device> {
    devices: Vec<Arc<D>>,
    broken: Mutex<Option<Fault>>,
}

/// A rank that another thread serves.
struct Follower {
    /// None once it ends.
    orders: Option<mpsc::Sender<Order>>,
    /// Whether the step that was finished was computed.
    done: mpsc::Receiver<Result<(), Fault>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Clone)]
enum Order {
    Begin(Step),
    Finish,
}

impl<D: Device> Ranks<D> {
    /// Takes the memory for the steps of one engine on every device, with as many blocks of keys and values as the one with
    /// the least room has, and starts the threads.
    ///
    /// # Errors
    /// There is too little memory on one, a device is lost, or the system gives no threads.
    pub fn new(parts: &[Arc<Decoder<D>>], config: &EngineConfig) -> Result<Self, Fault> {
        let prepared = parts.iter().map(|part| Prepared::new(Arc::clone(part), config));
        let prepared = prepared.collect::<Result<Vec<_>, _>>()?;
        let blocks = prepared.iter().map(Prepared::blocks).min().expect("at least one device");
        let steps = prepared.into_iter().map(|prepared| prepared.with_blocks(blocks));
        let mut steps = steps.collect::<Result<Vec<_>, _>>()?.into_iter();
        let devices = parts.iter().map(|part| Arc::clone(&part.device)).collect();
        let bond = Arc::new(Bond { devices, broken: Mutex::default() });
        let mut ranks = Self { leader: steps.next(), followers: Vec::new(), bond };
        for (steps, rank) in steps.zip(1..) {
            // If there is no thread for one, those that were started end with what is dropped here.
            ranks.followers.push(Follower::start(rank, steps, &ranks.bond)?);
        }
        Ok(ranks)
    }

    /// Blocks of keys and values that there is room for.
    pub fn blocks(&self) -> usize {
        self.leader.as_ref().map_or(0, Steps::blocks)
    }

    /// Shapes of steps that were recorded.
    pub fn recordings(&self) -> usize {
        self.leader.as_ref().map_or(0, Steps::recordings)
    }

    fn tell(&self, order: &Order) {
        for orders in self.followers.iter().filter_map(|follower| follower.orders.as_ref()) {
            // A thread that has ended has said why.
            let _ = orders.send(order.clone());
        }
    }
}

const LEADS: &str = "it leads until it ends";

impl<D: Device> Compute for Ranks<D> {
    fn picks(&self) -> bool {
        true
    }

    fn begin(&mut self, step: Step) -> Result<(), Fault> {
        self.tell(&Order::Begin(step.clone()));
        let leader = self.leader.as_mut().expect(LEADS);
        leader.begin(step).map_err(|fault| self.bond.break_up(0, fault))
    }

    fn finish(&mut self, allowed: &mut Allowed<'_>) -> Result<Vec<Row<'_>>, Fault> {
        self.tell(&Order::Finish);
        let bond = &self.bond;
        let rows = self.leader.as_mut().expect(LEADS).finish(allowed).map_err(|fault| bond.break_up(0, fault));
        // A leader that was parted from the others may have got anything: what they say counts first.
        for (follower, rank) in self.followers.iter().zip(1..) {
            let ended = || Err(bond.break_up(rank, Fault::Lost("its thread has ended".to_owned())));
            follower.done.recv().unwrap_or_else(|_| ended())?;
        }
        rows
    }

    /// The memory of a cache here is taken once, so what was computed of prompts is kept.
    fn rest(&mut self, _: &mut dyn FnMut() -> Vec<u32>) {}

    fn end(self: Box<Self>, _: Blocks) -> Prefixes {
        // What lies on devices is not kept: their memory is what a model gives back.
        Prefixes::empty()
    }
}

impl<D: Device> Drop for Ranks<D> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The others have begun what it has not, and are not to wait for it.
            self.bond.break_up(0, Fault::Lost("the engine's thread has panicked".to_owned()));
        }
        // All end at once: each waits for what is under way on its device, and that for the others.
        self.followers.iter_mut().for_each(|follower| drop(follower.orders.take()));
        drop(self.leader.take());
        for thread in self.followers.iter_mut().filter_map(|follower| follower.thread.take()) {
            // What a thread panicked about was said when it did.
            let _ = thread.join();
        }
    }
}

impl<D: Device> fmt::Debug for Ranks<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ranks({} devices)", self.bond.devices.len())
    }
}

impl<D: Device> Bond<D> {
    /// A rank has failed: nobody waits for it, and everyone says why. Returns the first fault of all.
    fn break_up(&self, rank: usize, fault: Fault) -> Fault {
        let mut broken = self.broken.lock().expect("no panic while the lock is held");
        if let Some(first) = &*broken {
            return first.clone();
        }
        let who = format!("{}, one of {} that compute the model", self.devices[rank].name(), self.devices.len());
        let first = match fault {
            Fault::Lost(why) => Fault::Lost(format!("{who}: {why}")),
            Fault::Refused(why) => Fault::Refused(format!("{who}: {why}")),
            memory @ Fault::Memory { .. } => memory,
        };
        *broken = Some(first.clone());
        drop(broken);
        self.devices.iter().for_each(|device| device.part());
        first
    }
}

impl Follower {
    fn start<D: Device>(rank: usize, steps: Steps<D>, bond: &Arc<Bond<D>>) -> Result<Self, Fault> {
        let (orders, inbox) = mpsc::channel();
        let (tells, done) = mpsc::channel();
        let bond = Arc::clone(bond);
        let thread = std::thread::Builder::new().name(format!("gpu-rank-{rank}"));
        let thread = thread.spawn(move || {
            // The others do not wait for a thread that has panicked.
            let _leaves = Leaves { rank, bond: &*bond };
            follow(steps, &inbox, &tells, |fault| bond.break_up(rank, fault));
        });
        let thread = thread.map_err(|error| Fault::Refused(format!("start a thread: {error}")))?;
        Ok(Self { orders: Some(orders), done, thread: Some(thread) })
    }
}

/// Parts the devices if the thread panics.
struct Leaves<'a, D: Device> {
    rank: usize,
    bond: &'a Bond<D>,
}

impl<D: Device> Drop for Leaves<'_, D> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.bond.break_up(self.rank, Fault::Lost("its thread has panicked".to_owned()));
        }
    }
}

/// Does what the leader does, until it ends.
fn follow<D: Device>(
    mut steps: Steps<D>,
    inbox: &mpsc::Receiver<Order>,
    tells: &mpsc::Sender<Result<(), Fault>>,
    break_up: impl Fn(Fault) -> Fault,
) {
    let mut failed = None;
    for order in inbox {
        match order {
            Order::Begin(step) if failed.is_none() => failed = steps.begin(step).err().map(&break_up),
            Order::Begin(_) => {}
            Order::Finish => {
                if failed.is_none() {
                    failed = steps.finish(&mut |_| None).err().map(&break_up);
                }
                // Whoever asked may have ended.
                let _ = tells.send(failed.clone().map_or(Ok(()), Err));
            }
        }
    }
}
