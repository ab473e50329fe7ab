//! The kernels for GPUs against their twins, on the host: every kernel is run as it is, thread by thread, over random
//! values of many shapes, and in several orders of its threads, which must change nothing. What this cannot show is what a
//! compiler for GPUs or a GPU do: where there is one, every kernel runs there, too.

mod attention;
mod bench;
mod emulated;
mod rows;
mod sampling;
mod shipped;
mod twins;

use bench::Parameter;
use emulated::{Emulated, Order};
use half::bf16;

/// A pointer to nothing.
const NULL: Option<bench::Buffer<u8>> = None;

/// Random numbers that a seed decides.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }

    /// Between -1 and 1, uniformly.
    fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    /// Roughly normal, of that deviation.
    fn normal(&mut self, deviation: f32) -> f32 {
        (0..4).map(|_| self.float()).sum::<f32>() * 0.866 * deviation
    }

    fn floats(&mut self, count: usize, deviation: f32) -> Vec<f32> {
        (0..count).map(|_| self.normal(deviation)).collect()
    }

    fn brains(&mut self, count: usize, deviation: f32) -> Vec<bf16> {
        (0..count).map(|_| bf16::from_f32(self.normal(deviation))).collect()
    }

    /// All numbers below a bound, shuffled.
    fn permutation(&mut self, count: usize) -> Vec<u32> {
        let mut numbers: Vec<u32> = (0..count as u32).collect();
        for at in (1..count).rev() {
            numbers.swap(at, self.below(at + 1));
        }
        numbers
    }
}

/// Fails unless the values are the twin's, but for the rounding to bf16 and `slack` of absolute difference.
fn assert_rounded(values: &[bf16], twin: &[f64], slack: f64, what: &str) {
    assert_eq!(values.len(), twin.len(), "{what}");
    for (at, (value, twin)) in values.iter().zip(twin).enumerate() {
        // Half a unit in the last of 8 places, and a little for the sums before.
        let tolerance = twin.abs() * (1.0 / 256.0 + 1e-4) + slack;
        let value = f64::from(*value);
        assert!((value - twin).abs() <= tolerance, "{what}: value {at} is {value} instead of {twin}");
    }
}

/// The same for values that are not rounded.
fn assert_close(values: &[f32], twin: &[f64], tolerance: f64, what: &str) {
    assert_eq!(values.len(), twin.len(), "{what}");
    for (at, (value, twin)) in values.iter().zip(twin).enumerate() {
        let value = f64::from(*value);
        assert!(
            (value - twin).abs() <= tolerance * twin.abs().max(1.0),
            "{what}: value {at} is {value} instead of {twin}"
        );
    }
}

#[test]
fn a_launch_that_a_device_would_refuse_is_refused() {
    let launch = |kernel, grid, threads| Emulated::get().launch(kernel, grid, threads, 0, &mut [], Order::Forward);
    let refusals = [
        launch("embeds", [1, 1, 1], 256).unwrap_err(),
        launch("embed", [1, 1, 1], 128).unwrap_err(),
        launch("embed", [1, 0, 1], 256).unwrap_err(),
    ];
    for (refusal, part) in refusals.iter().zip(["no kernel", "256 threads", "no blocks"]) {
        assert!(refusal.contains(part), "{refusal}");
    }
}
