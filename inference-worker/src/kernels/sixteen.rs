//! Sixteen floats in registers: what a kernel written once for every instruction set adds its products to.
//!
//! Plain arrays are not enough where many sums live at once: the compiler then unrolls them into single floats.

use crate::kernels::Lane;

/// Sixteen sums.
pub(super) trait Sixteen: Copy {
    /// There are registers for twenty-four of these, and not for twelve halves only.
    const MANY: bool;
    /// Products and sums are fused.
    const FUSED: bool;

    /// Zeros.
    fn zero() -> Self;
    /// `self + weight * lane`.
    fn add_product(self, weight: f32, lane: &Lane) -> Self;
    /// The values.
    fn to_array(self) -> [f32; 16];
}

/// For any CPU.
#[derive(Clone, Copy)]
pub(super) struct Plain([f32; 16]);

impl Sixteen for Plain {
    const MANY: bool = false;
    const FUSED: bool = false;

    #[inline(always)]
    fn zero() -> Self {
        Self([0.0; 16])
    }

    #[inline(always)]
    fn add_product(mut self, weight: f32, lane: &Lane) -> Self {
        for (sum, value) in self.0.iter_mut().zip(&lane.0) {
            *sum += weight * value;
        }
        self
    }

    #[inline(always)]
    fn to_array(self) -> [f32; 16] {
        self.0
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "vector intrinsics")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Lane, Sixteen};

    /// For functions compiled for AVX-512F; nothing else may name it.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(__m512);

    impl Sixteen for Avx512 {
        const MANY: bool = true;
        const FUSED: bool = true;

        #[inline(always)]
        fn zero() -> Self {
            // SAFETY: only functions that run after the CPU was asked for AVX-512F name this type.
            Self(unsafe { _mm512_setzero_ps() })
        }

        #[inline(always)]
        fn add_product(self, weight: f32, lane: &Lane) -> Self {
            // SAFETY: as above; a lane is 64 bytes, aligned to as many.
            Self(unsafe { _mm512_fmadd_ps(_mm512_set1_ps(weight), _mm512_load_ps(lane.0.as_ptr()), self.0) })
        }

        #[inline(always)]
        fn to_array(self) -> [f32; 16] {
            let mut values = [0.0; 16];
            // SAFETY: as above; the array holds sixteen values.
            unsafe { _mm512_storeu_ps(values.as_mut_ptr(), self.0) };
            values
        }
    }

    /// For functions compiled for AVX2 and FMA; nothing else may name it.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2([__m256; 2]);

    impl Sixteen for Avx2 {
        const MANY: bool = false;
        const FUSED: bool = true;

        #[inline(always)]
        fn zero() -> Self {
            // SAFETY: only functions that run after the CPU was asked for AVX2 and FMA name this type.
            Self(unsafe { [_mm256_setzero_ps(); 2] })
        }

        #[inline(always)]
        fn add_product(self, weight: f32, lane: &Lane) -> Self {
            let from = lane.0.as_ptr();
            // SAFETY: as above; a lane holds two vectors of eight and is aligned to more.
            unsafe {
                let weight = _mm256_set1_ps(weight);
                Self([
                    _mm256_fmadd_ps(weight, _mm256_load_ps(from), self.0[0]),
                    _mm256_fmadd_ps(weight, _mm256_load_ps(from.add(8)), self.0[1]),
                ])
            }
        }

        #[inline(always)]
        fn to_array(self) -> [f32; 16] {
            let mut values = [0.0; 16];
            // SAFETY: as above; the array holds two vectors of eight.
            unsafe {
                _mm256_storeu_ps(values.as_mut_ptr(), self.0[0]);
                _mm256_storeu_ps(values.as_mut_ptr().add(8), self.0[1]);
            }
            values
        }
    }
}
