//! The arithmetic of the decoder on a CPU: packed matrix products, paged attention, and the row-wise rest.
//!
//! Every kernel computes a row in the same order of operations whatever else stands in the batch. A request therefore
//! gets the same tokens alone, in a crowd, or continued by another worker, bit for bit on the same kind of CPU.
//!
//! The unsafe blocks here are of four kinds: calls into code compiled for an instruction set, after asking the CPU
//! for it; raw stores into disjoint columns of one output by several threads; work lent to threads (`team`); and memory
//! of the system's as arrays (`pages`).

pub mod attention;
pub mod elementwise;
pub mod encoder;
pub mod matmul;
pub mod matrix;
mod pages;
pub mod quantised;
mod sixteen;
pub mod team;

/// Sixteen floats on their own cache line: the unit in which weights and cached keys and values are stored.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Lane(pub [f32; 16]);

impl Lane {
    /// All zeros.
    pub const ZERO: Self = Self([0.0; 16]);
}

/// The instruction sets that have their own kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isa {
    /// 512-bit vectors with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// 256-bit vectors with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Whatever the compiler makes of plain Rust.
    Portable,
}

impl Isa {
    /// All that this CPU can run.
    #[cfg(test)]
    pub(crate) fn available() -> Vec<Self> {
        let mut all = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        match isa() {
            Self::Avx512 => all.extend([Self::Avx2, Self::Avx512]),
            Self::Avx2 => all.push(Self::Avx2),
            Self::Portable => {}
        }
        all
    }
}

/// The best instruction set this CPU has; the standard library remembers the answer.
pub(crate) fn isa() -> Isa {
    #[cfg(target_arch = "x86_64")]
    {
        // Every CPU with AVX2 has the others; it is asked for all the same.
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            return if is_x86_feature_detected!("avx512f") { Isa::Avx512 } else { Isa::Avx2 };
        }
    }
    Isa::Portable
}

/// `a * b + c`, fused where the caller is compiled for a CPU that fuses; elsewhere fusing would be a library call.
#[inline(always)]
pub(crate) fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// Compiles one `#[inline(always)]` function with a `FUSED` parameter for each instruction set, and calls the best.
macro_rules! for_each_isa {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) = $body:ident;) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments, reason = "kernels take slices and their dimensions")]
        $vis fn $name($($argument: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx2,fma")]
                #[allow(clippy::too_many_arguments, reason = "kernels take slices and their dimensions")]
                fn avx512($($argument: $type),*) { $body::<true>($($argument),*) }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments, reason = "kernels take slices and their dimensions")]
                fn avx2($($argument: $type),*) { $body::<true>($($argument),*) }
                #[allow(unsafe_code, reason = "calls a function compiled for an instruction set")]
                match $crate::kernels::isa() {
                    // SAFETY: `isa` has just found these features on this CPU.
                    $crate::kernels::Isa::Avx512 => return unsafe { avx512($($argument),*) },
                    // SAFETY: `isa` has just found these features on this CPU.
                    $crate::kernels::Isa::Avx2 => return unsafe { avx2($($argument),*) },
                    $crate::kernels::Isa::Portable => {}
                }
            }
            $body::<false>($($argument),*);
        }
    };
}
pub(crate) use for_each_isa;
