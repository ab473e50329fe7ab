//! The threads that compute: one team for all models of a process, so that they never fight over the cores.
//!
//! A step of a small model is some sixty products of tens of microseconds each: waking a sleeping thread for every one
//! would cost as much as it saves. Members therefore look for the next piece of work for a moment before they sleep, and
//! no longer: a machine that is shared gets its cores back. Pieces are taken from one cursor. A member that the system
//! has set aside holds up only the piece in its hands, and one that comes when all pieces are taken holds up nothing.
//!
//! Two engines never wait for each other here: whoever finds the team busy computes alone.
//!
//! The unsafe code is of one kind: work borrows from the caller's stack and is lent to members, who are done with it
//! before the caller goes on.

use std::{
    cell::UnsafeCell,
    hint::spin_loop,
    mem::ManuallyDrop,
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{JoinHandle, Thread},
};

/// How often a member looks for work before it sleeps: a few tens of microseconds, longer than the pause between two
/// products of one step, shorter than waking it takes.
const LOOKS: u32 = 1_500;
/// How often the caller looks whether the others are done before it lets other threads run in its place.
const LOOKS_AT_END: u32 = 3_000;

/// Some threads that share work with whoever calls them.
#[derive(Debug)]
pub struct Team {
    shared: Arc<Shared>,
    members: Vec<Member>,
    /// Work is lent.
    lent: AtomicBool,
}

#[derive(Debug)]
struct Member {
    thread: Thread,
    asleep: Arc<AtomicBool>,
    handle: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// The number of the work that is lent in the upper half, `OPEN` while it may be joined, below it who has joined.
    state: AtomicU64,
    cursor: AtomicUsize,
    work: UnsafeCell<Work>,
    panicked: AtomicBool,
    ended: AtomicBool,
}

const OPEN: u64 = 1 << 31;
const JOINED: u64 = OPEN - 1;
const NEXT: u64 = 1 << 32;

/// What is lent: a closure on the caller's stack, and how many pieces it has.
#[derive(Debug, Clone, Copy)]
struct Work {
    call: unsafe fn(*const (), usize),
    closure: *const (),
    pieces: usize,
}

#[expect(unsafe_code, reason = "work is lent across threads")]
// SAFETY: `work` is written by whoever set `lent` while the state is not `OPEN` and nobody is joined, and read only by
// members that have joined.
unsafe impl Sync for Shared {}

#[expect(unsafe_code, reason = "work is lent across threads")]
// SAFETY: the closure behind the pointer is `Sync` (see `run`), and nothing else in it belongs to a thread.
unsafe impl Send for Shared {}

impl Team {
    /// A team of that many threads, the caller of `run` among them.
    ///
    /// # Errors
    /// The system gives no threads.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            cursor: AtomicUsize::new(0),
            work: UnsafeCell::new(Work { call: nothing, closure: ptr::null(), pieces: 0 }),
            panicked: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let mut team = Self { shared, members: Vec::new(), lent: AtomicBool::new(false) };
        for index in 1..threads {
            let (shared, asleep) = (Arc::clone(&team.shared), Arc::new(AtomicBool::new(false)));
            let flag = Arc::clone(&asleep);
            let handle =
                std::thread::Builder::new().name(format!("compute-{index}")).spawn(move || serve(&shared, &flag))?;
            team.members.push(Member { thread: handle.thread().clone(), asleep, handle: Some(handle) });
        }
        Ok(team)
    }

    /// Only the caller.
    pub fn alone() -> Self {
        Self::new(1).expect("no thread is asked for")
    }

    /// Threads that work together, the caller among them.
    pub fn threads(&self) -> usize {
        self.members.len() + 1
    }

    /// Calls `work` once for each piece in `0..pieces`, on several threads, and returns when all are done. Pieces are
    /// taken in their order; which thread computes which is left to chance.
    ///
    /// # Panics
    /// When `work` does.
    pub fn run(&self, pieces: usize, work: impl Fn(usize) + Sync) {
        let alone = || (0..pieces).for_each(&work);
        if pieces < 2 || self.members.is_empty() {
            return alone();
        }
        // Somebody else's work does not make ours wait; and work that calls `run` computes its parts itself.
        if self.lent.swap(true, Ordering::Acquire) {
            return alone();
        }
        let _lent = Lent(&self.lent);
        self.lend(pieces, &work);
    }

    /// Calls `work` once for each of `items`, on several threads.
    ///
    /// # Panics
    /// When `work` does; items that nobody took by then are leaked.
    pub fn each<T: Send>(&self, items: Vec<T>, work: impl Fn(T) + Sync) {
        struct Items<T>(*mut ManuallyDrop<T>);
        impl<T> Items<T> {
            #[expect(unsafe_code, reason = "moves each item out once")]
            fn take(&self, index: usize) -> T {
                // SAFETY: `run` gives every index below the length to exactly one call.
                unsafe { ManuallyDrop::into_inner(ptr::read(self.0.add(index))) }
            }
        }
        #[expect(unsafe_code, reason = "items are moved to the threads that take them")]
        // SAFETY: every item is `Send` and is touched by one thread alone.
        unsafe impl<T: Send> Sync for Items<T> {}
        let mut items: Vec<ManuallyDrop<T>> = items.into_iter().map(ManuallyDrop::new).collect();
        let (count, from) = (items.len(), Items(items.as_mut_ptr()));
        self.run(count, |index| work(from.take(index)));
    }

    fn lend<F: Fn(usize) + Sync>(&self, pieces: usize, work: &F) {
        #[expect(unsafe_code, reason = "gives a closure its type back")]
        unsafe fn call<F: Fn(usize)>(closure: *const (), piece: usize) {
            // SAFETY: `lend` made the pointer from an `&F` that lives until every member has left.
            unsafe { (*closure.cast::<F>())(piece) }
        }
        let shared = &*self.shared;
        let state = shared.state.load(Ordering::Relaxed);
        #[expect(unsafe_code, reason = "nobody reads the work before it is opened")]
        // SAFETY: the last work is closed and left by all, and `lent` is ours.
        unsafe {
            *shared.work.get() = Work { call: call::<F>, closure: ptr::from_ref(work).cast(), pieces };
        }
        shared.cursor.store(0, Ordering::Relaxed);
        // Sequentially consistent with the flag below: either a member that goes to sleep sees the work, or it is seen
        // sleeping.
        shared.state.store((state & !JOINED & !OPEN).wrapping_add(NEXT) | OPEN, Ordering::SeqCst);
        for member in self.members.iter().take(pieces - 1) {
            if member.asleep.load(Ordering::SeqCst) && member.asleep.swap(false, Ordering::SeqCst) {
                member.thread.unpark();
            }
        }
        // The work must not be left before its members are, not even by a panic.
        let own = catch_unwind(AssertUnwindSafe(|| shared.take_pieces()));
        let mut looks = 0;
        let mut state = shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        while state & JOINED != 0 {
            looks += 1;
            // A member may have been set aside with a piece in its hands: let it run.
            if looks > LOOKS_AT_END {
                std::thread::yield_now()
            } else {
                spin_loop()
            }
            state = shared.state.load(Ordering::Acquire);
        }
        let panicked = shared.panicked.swap(false, Ordering::Relaxed);
        if let Err(panic) = own {
            std::panic::resume_unwind(panic);
        }
        assert!(!panicked, "a piece of work panicked on another thread");
    }
}

/// Ends the lending, by a panic as well.
struct Lent<'a>(&'a AtomicBool);

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        for member in &mut self.members {
            member.thread.unpark();
            if let Some(handle) = member.handle.take() {
                // It ends on its own; a panic there was told to the caller of `run`.
                let _ = handle.join();
            }
        }
    }
}

impl Shared {
    /// Computes pieces until all are taken.
    #[expect(unsafe_code, reason = "calls lent work")]
    fn take_pieces(&self) {
        // SAFETY: called by the lender, or by a member that has joined and not left: the work stays as it is.
        let work = unsafe { *self.work.get() };
        loop {
            let piece = self.cursor.fetch_add(1, Ordering::Relaxed);
            if piece >= work.pieces {
                return;
            }
            // SAFETY: as above; the closure may be called by several threads, and each piece is given once.
            unsafe { (work.call)(work.closure, piece) };
        }
    }

    /// Joins the work that is lent, unless it is the one of `seen` or none; says which it was.
    fn join(&self, seen: u64) -> Option<u64> {
        let mut state = self.state.load(Ordering::SeqCst);
        while state & OPEN != 0 && state / NEXT != seen {
            match self.state.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(state / NEXT),
                Err(now) => state = now,
            }
        }
        None
    }
}

/// The life of a member.
fn serve(shared: &Shared, asleep: &AtomicBool) {
    let mut seen = 0;
    let mut looks = 0;
    while !shared.ended.load(Ordering::Relaxed) {
        if let Some(joined) = shared.join(seen) {
            (seen, looks) = (joined, 0);
            if catch_unwind(AssertUnwindSafe(|| shared.take_pieces())).is_err() {
                shared.panicked.store(true, Ordering::Relaxed);
            }
            // All that was computed is visible to whoever sees this.
            shared.state.fetch_sub(1, Ordering::Release);
        } else if looks < LOOKS {
            looks += 1;
            spin_loop();
        } else {
            asleep.store(true, Ordering::SeqCst);
            let state = shared.state.load(Ordering::SeqCst);
            let nothing_new = state & OPEN == 0 || state / NEXT == seen;
            if nothing_new && !shared.ended.load(Ordering::SeqCst) {
                std::thread::park();
            }
            asleep.store(false, Ordering::SeqCst);
            looks = 0;
        }
    }
}

#[expect(unsafe_code, reason = "has the shape of lent work")]
unsafe fn nothing(_: *const (), _: usize) {}

#[cfg(test)]
mod tests;
