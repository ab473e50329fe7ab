// out = silu(gate) * up for rows [gate | up].
//
// gate_up [count, 2 * intermediate] bf16, out [count, intermediate] bf16.
// Grid (ceil(intermediate / 2048), count), block 256: 8 values to a thread. The count of a grid's second dimension is at
// most 65535.
__device__ __forceinline__ float gated(float gate, float up) {
    // 1 / (1 + 2^(-gate log2 e)): where the power overflows, the quotient is 0, as it should be.
    return gate / (1.0f + exp2_fast(gate * -1.4426950408889634f)) * up;
}

__device__ __forceinline__ u32 gated_pair(u32 gates, u32 ups) {
    return pack_bf16(gated(low_bf16(gates), low_bf16(ups)), gated(high_bf16(gates), high_bf16(ups)));
}

KERNEL(silu_multiply, 256, 1, const u16* gate_up, u16* out, u32 intermediate) {
    const u32 at = (blockIdx.x * 256 + threadIdx.x) * 8;
    if (at >= intermediate) return;
    const u16* row = gate_up + (u64)blockIdx.y * 2 * intermediate + at;
    const uint4 gates = load_once(row);
    const uint4 ups = load_once(row + intermediate);
    uint4 pairs;
    pairs.x = gated_pair(gates.x, ups.x);
    pairs.y = gated_pair(gates.y, ups.y);
    pairs.z = gated_pair(gates.z, ups.z);
    pairs.w = gated_pair(gates.w, ups.w);
    *(uint4*)(out + (u64)blockIdx.y * intermediate + at) = pairs;
}
