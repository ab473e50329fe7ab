// RMS norms of the residual stream. Grid (rows), block 256: one block to a row.
//
// A row is read once: a thread keeps up to 8 x 4 values and their weights in registers between the sum and the scaling,
// enough for a hidden width of 8192; what is wider is read again. All loads of a thread are independent and come before the
// sum, so a row costs one latency of memory and one barrier, whatever its width: what counts with few rows.

#define KEPT 8

template <bool adds>
__device__ __forceinline__ void normalise(float* x, const u16* projected, const float* bias, const float* weight, float epsilon,
                                          u16* out, u32 hidden, float* room) {
    const u32 step = 256 * 4;
    float4 kept[KEPT], weights[KEPT];
    uint2 added[KEPT];
    float squares = 0.0f;
    // All loads come before the first store, behind which a compiler may not move them.
#pragma unroll
    for (u32 k = 0; k < KEPT; k++) {
        const u32 at = k * step + threadIdx.x * 4;
        if (at >= hidden) continue;
        kept[k] = *(const float4*)(x + at);
        weights[k] = *(const float4*)(weight + at);
        if (adds) added[k] = *(const uint2*)(projected + at);
    }
    const auto take = [&](u32 at, float4 value, uint2 more) {
        if (adds) {
            value.x += low_bf16(more.x), value.y += high_bf16(more.x), value.z += low_bf16(more.y), value.w += high_bf16(more.y);
            if (bias) {
                const float4 b = *(const float4*)(bias + at);
                value.x += b.x, value.y += b.y, value.z += b.z, value.w += b.w;
            }
            *(float4*)(x + at) = value;
        }
        squares += value.x * value.x + value.y * value.y + value.z * value.z + value.w * value.w;
        return value;
    };
#pragma unroll
    for (u32 k = 0; k < KEPT; k++) {
        const u32 at = k * step + threadIdx.x * 4;
        if (at < hidden) kept[k] = take(at, kept[k], added[k]);
    }
    for (u32 at = KEPT * step + threadIdx.x * 4; at < hidden; at += step) {
        const uint2 nothing = {0, 0};
        take(at, *(const float4*)(x + at), adds ? *(const uint2*)(projected + at) : nothing);
    }
    const float scale = 1.0f / sqrtf(block_sum<8>(squares, room) / (float)hidden + epsilon);
    const auto store = [&](u32 at, float4 value, float4 w) {
        uint2 pairs;
        pairs.x = pack_bf16(value.x * scale * w.x, value.y * scale * w.y);
        pairs.y = pack_bf16(value.z * scale * w.z, value.w * scale * w.w);
        *(uint2*)(out + at) = pairs;
    };
#pragma unroll
    for (u32 k = 0; k < KEPT; k++) {
        const u32 at = k * step + threadIdx.x * 4;
        if (at < hidden) store(at, kept[k], weights[k]);
    }
    // A thread reads again what it wrote itself.
    for (u32 at = KEPT * step + threadIdx.x * 4; at < hidden; at += step)
        store(at, *(const float4*)(x + at), *(const float4*)(weight + at));
}

// out[row] = bf16(x[source] / rms(x[source]) * weight), where source is rows[row], or row when `rows` is null.
//
// x [*, hidden] f32, rows [rows] (optional), weight [hidden] f32, out [rows, hidden] bf16.
KERNEL(rms_norm, 256, 1, const float* x, const u32* rows, const float* weight, float epsilon, u16* out, u32 hidden) {
    __shared__ float room[8];
    const u64 source = rows ? rows[blockIdx.x] : blockIdx.x;
    normalise<false>((float*)x + source * hidden, 0, 0, weight, epsilon, out + (u64)blockIdx.x * hidden, hidden, room);
}

// x[source] += projected[source] + bias, then out[row] as above: the end of one half of a layer and the start of the next.
// For the last norm `rows` lists the rows whose logits are wanted, each at most once; the others stay as they were.
//
// x [*, hidden] f32, projected [*, hidden] bf16, bias [hidden] f32 (optional).
KERNEL(add_rms_norm, 256, 1, float* x, const u16* projected, const float* bias, const u32* rows, const float* weight,
       float epsilon, u16* out, u32 hidden) {
    __shared__ float room[8];
    const u64 source = rows ? rows[blockIdx.x] : blockIdx.x;
    normalise<true>(x + source * hidden, projected + source * hidden, bias, weight, epsilon, out + (u64)blockIdx.x * hidden,
                    hidden, room);
}
