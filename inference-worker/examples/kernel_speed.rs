//! Measures the matrix products alone, over a pool of weights larger than the caches: floats and 8-bit weights, by rows.
//!
//! The figures are for each second of CPU time of all threads together, which other work on the machine disturbs less
//! than the clock on the wall.
//!
//! `cargo run -p inference-worker --example kernel_speed [THREADS]`

use std::time::Duration;

use inference_worker::kernels::{matmul::Packed, matrix::Matrix, quantised::Quantised, team::Team};

/// Weights read in one pass, so that they come from memory as in a model.
const POOL_BYTES: usize = 192 << 20;

fn main() {
    let threads = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(2);
    let team = Team::new(threads).expect("threads");
    for (outputs, inputs) in [(6144, 768), (768, 3072)] {
        for quantised in [false, true] {
            let size = outputs * inputs;
            let count = POOL_BYTES / (size * if quantised { 1 } else { 4 });
            let pool: Vec<Packed> =
                (0..count).map(|_| Packed::stack(vec![matrix(outputs, inputs, quantised)], inputs)).collect();
            for rows in [1, 2, 4, 6, 8, 16, 32, 128, 512] {
                let x = vec![0.5; rows * inputs];
                let mut y = vec![0.0; rows * outputs];
                let best = (0..5).map(|_| pass(&team, &pool, &x, &mut y)).min().expect("five passes").as_secs_f64();
                let flops = 2.0 * (size * rows * pool.len()) as f64 / best / 1e9;
                let bytes = pool.iter().map(Packed::bytes).sum::<usize>() as f64 / best / 1e9;
                let kind = if quantised { "8-bit" } else { "float" };
                println!(
                    "{kind} [{outputs}, {inputs}] rows {rows:>3}: {flops:7.1} GFLOP/s, {bytes:5.1} GB/s of weights"
                );
            }
        }
    }
}

fn matrix(outputs: usize, inputs: usize, quantised: bool) -> Matrix {
    if !quantised {
        return Matrix::Float(vec![0.01; outputs * inputs]);
    }
    Matrix::Quantised(Quantised {
        inputs,
        group: 32,
        values: vec![100; outputs * inputs],
        scales: vec![0.01; outputs * inputs / 32],
        offsets: None,
        half_scales: true,
    })
}

fn pass(team: &Team, pool: &[Packed], x: &[f32], y: &mut [f32]) -> Duration {
    let began = cpu_time();
    // Many rows are slow enough to be measured with a few matrices.
    let count = if x.len() / pool[0].inputs() >= 128 { pool.len().min(4) } else { pool.len() };
    for weights in pool.iter().cycle().take(pool.len()).take(count) {
        weights.multiply(team, x, y);
    }
    (cpu_time() - began) * (pool.len() / count) as u32
}

/// What all threads of this process have computed so far.
fn cpu_time() -> Duration {
    let threads = std::fs::read_dir("/proc/self/task").expect("Linux lists threads");
    let nanos = threads.filter_map(|thread| {
        let text = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}
