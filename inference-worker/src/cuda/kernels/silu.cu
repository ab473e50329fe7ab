// out = silu(gate) * up for rows [gate | up].
//
// gate_up [count, 2 * intermediate] bf16, out [count, intermediate] bf16.
// Grid (ceil(intermediate / 2048), count), block 256: 8 values to a thread.
KERNEL(silu_multiply, 256, 1, const u16* gate_up, u16* out, u32 intermediate);
