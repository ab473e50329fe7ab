//! Large arrays in memory of their own: given back, they are the system's again at once, which an allocator does not
//! promise (weights on x86-64 only; elsewhere with the model).
//!
//! Weights are read from end to end for every token. With pages of 4 KiB the hardware looks ahead in vain and half the
//! bandwidth is lost, so they lie side by side in mappings that the system may back with large pages.

use std::{
    marker::PhantomData,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError},
};

use half::f16;
use memmap2::{Advice, MmapMut, MmapRaw, UncheckedAdvice};

use crate::kernels::Lane;

/// A large page.
const LARGE_PAGE: usize = 2 << 20;
/// What is mapped at a time for weights; only what is used takes memory.
const CHUNK: usize = 64 << 20;
/// Arrays begin at a page of x86-64, so that there each can be given back by itself.
const PAGE: usize = 4096;

/// `count` values, zero at first.
#[derive(Debug)]
pub(crate) struct Pages<T> {
    place: Place,
    count: usize,
    values: PhantomData<T>,
}

#[derive(Debug)]
enum Place {
    /// No values: a mapping cannot be empty.
    Nowhere,
    Own(MmapMut),
    /// A part of a chunk that belongs to nobody else.
    Shared {
        chunk: Arc<MmapRaw>,
        start: usize,
        bytes: usize,
    },
}

/// The chunk that has room, and where it begins.
static CHUNK_WITH_ROOM: Mutex<Option<(Arc<MmapRaw>, usize)>> = Mutex::new(None);

/// Values for which every pattern of bits is one.
///
/// # Safety
/// That is so, all zeros included, and an alignment is no larger than a page.
#[expect(unsafe_code, reason = "whoever implements it promises something")]
pub(crate) unsafe trait Plain: Copy {}

#[expect(unsafe_code, reason = "floats and integers take every pattern of bits")]
const _: () = {
    // SAFETY: floats take every pattern of bits.
    unsafe impl Plain for Lane {}
    // SAFETY: floats take every pattern of bits.
    unsafe impl<const N: usize> Plain for [f16; N] {}
    // SAFETY: floats take every pattern of bits.
    unsafe impl<const N: usize, const M: usize> Plain for [[f16; N]; M] {}
    // SAFETY: floats take every pattern of bits.
    unsafe impl<const N: usize, const M: usize> Plain for [[f32; N]; M] {}
};

impl<T: Plain> Pages<T> {
    /// Zeros in a mapping of their own.
    pub(crate) fn zeros(count: usize) -> Self {
        let bytes = count * size_of::<T>();
        let place = if bytes == 0 { Place::Nowhere } else { Place::Own(mapped(MmapMut::map_anon(bytes))) };
        Self { place, count, values: PhantomData }
    }

    /// Zeros beside those asked for before, on large pages where the system has them.
    pub(crate) fn zeros_for_weights(count: usize) -> Self {
        let bytes = count * size_of::<T>();
        if bytes == 0 {
            return Self::zeros(0);
        }
        let mut with_room = CHUNK_WITH_ROOM.lock().unwrap_or_else(PoisonError::into_inner);
        let (chunk, start) = match with_room.take() {
            Some((chunk, start)) if start + bytes <= chunk.len() => (chunk, start),
            _ => new_chunk(bytes),
        };
        *with_room = Some((Arc::clone(&chunk), (start + bytes).next_multiple_of(PAGE)));
        Self { place: Place::Shared { chunk, start, bytes }, count, values: PhantomData }
    }

    fn start(&self) -> Option<*mut T> {
        match &self.place {
            Place::Nowhere => None,
            Place::Own(map) => Some(map.as_ptr().cast::<T>().cast_mut()),
            Place::Shared { chunk, start, .. } => Some(chunk.as_mut_ptr().wrapping_add(*start).cast()),
        }
    }
}

/// A chunk with room for so many bytes, and where its first large page begins.
fn new_chunk(bytes: usize) -> (Arc<MmapRaw>, usize) {
    let chunk = MmapRaw::from(mapped(MmapMut::map_anon(CHUNK.max(bytes.next_multiple_of(LARGE_PAGE)) + LARGE_PAGE)));
    // Without large pages it is slower, and right.
    let _ = chunk.advise(Advice::HugePage);
    let start = (chunk.as_ptr() as usize).next_multiple_of(LARGE_PAGE) - chunk.as_ptr() as usize;
    (Arc::new(chunk), start)
}

fn mapped(map: std::io::Result<MmapMut>) -> MmapMut {
    map.expect("the system has memory for an array")
}

impl<T> Drop for Pages<T> {
    #[expect(unsafe_code, reason = "gives a part of a mapping back")]
    fn drop(&mut self) {
        // Elsewhere pages may be larger and hold parts of two arrays: the memory goes with the chunk.
        if let Place::Shared { chunk, start, bytes } = &self.place
            && cfg!(target_arch = "x86_64")
        {
            // SAFETY: the part begins at a page and its pages hold nothing else (see `zeros_for_weights`), and it is not read
            // again. If the system refuses, the memory goes with the chunk.
            let _ = unsafe { chunk.unchecked_advise_range(UncheckedAdvice::DontNeed, *start, *bytes) };
        }
    }
}

impl<T: Plain> Deref for Pages<T> {
    type Target = [T];

    #[expect(unsafe_code, reason = "a mapping is bytes")]
    fn deref(&self) -> &[T] {
        // SAFETY: the place holds `count` values and begins at a page; every pattern of bits is a value; parts of a chunk do
        // not overlap, so nobody writes while this borrow lives.
        self.start().map_or(&[], |start| unsafe { std::slice::from_raw_parts(start, self.count) })
    }
}

impl<T: Plain> DerefMut for Pages<T> {
    #[expect(unsafe_code, reason = "a mapping is bytes")]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and the borrow is exclusive.
        self.start().map_or(&mut [], |start| unsafe { std::slice::from_raw_parts_mut(start, self.count) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_side_by_side_are_zero_and_do_not_touch_each_other() {
        let fill = |pages: &mut Pages<Lane>, value: f32| pages.iter_mut().for_each(|lane| lane.0 = [value; 16]);
        let holds = |pages: &Pages<Lane>, value: f32| pages.iter().all(|lane| lane.0 == [value; 16]);
        let counts = [1, 100, 3 * CHUNK / size_of::<Lane>() / 4, 1, 3 * CHUNK / size_of::<Lane>() / 4, 0];
        let mut all: Vec<Pages<Lane>> = counts.map(Pages::zeros_for_weights).into();
        for (index, pages) in all.iter_mut().enumerate() {
            assert!(pages.len() == counts[index] && holds(pages, 0.0), "{index}");
            fill(pages, index as f32 + 1.0);
        }
        drop(all.remove(1));
        for (index, pages) in [0, 2, 3, 4, 5].into_iter().zip(&all) {
            assert!(holds(pages, index as f32 + 1.0), "{index}");
        }
    }
}
