//! Large arrays in memory of their own: given back, they are the system's again at once, which an allocator does not
//! promise; and where the system has large pages, an array that is read from end to end uses them.

use std::{marker::PhantomData, ops::Deref, ops::DerefMut};

use half::f16;
use memmap2::{Advice, MmapMut};

use crate::kernels::Lane;

/// From this size on large pages pay.
const LARGE_BYTES: usize = 2 << 20;

/// `count` values, zero at first.
#[derive(Debug)]
pub(crate) struct Pages<T> {
    /// None for no values: a mapping cannot be empty.
    map: Option<MmapMut>,
    count: usize,
    values: PhantomData<T>,
}

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
    /// Zeros.
    pub(crate) fn zeros(count: usize) -> Self {
        let bytes = count * size_of::<T>();
        let map = (bytes > 0).then(|| {
            let map = MmapMut::map_anon(bytes).expect("the system has memory for an array");
            if bytes >= LARGE_BYTES {
                // Without large pages it is slower, and right.
                let _ = map.advise(Advice::HugePage);
            }
            map
        });
        Self { map, count, values: PhantomData }
    }
}

impl<T: Plain> Deref for Pages<T> {
    type Target = [T];

    #[expect(unsafe_code, reason = "a mapping is bytes")]
    fn deref(&self) -> &[T] {
        let Some(map) = &self.map else { return &[] };
        // SAFETY: the mapping holds `count` values and begins at a page; every pattern of bits is a value.
        unsafe { std::slice::from_raw_parts(map.as_ptr().cast(), self.count) }
    }
}

impl<T: Plain> DerefMut for Pages<T> {
    #[expect(unsafe_code, reason = "a mapping is bytes")]
    fn deref_mut(&mut self) -> &mut [T] {
        let Some(map) = &mut self.map else { return &mut [] };
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(map.as_mut_ptr().cast(), self.count) }
    }
}
