// Products of a few tokens, for decoding at small batches: bound by the bytes of the weights, each of which is read once.
//
// in [count, inputs] bf16 with count at most 8, weight [outputs, inputs] bf16. Grid (ceil(outputs / 16)), block 256.
//
// How it works. Sixteen rows of weights are the rows of a product on tensor cores and eight tokens its columns, so that up
// to 8 tokens cost what one does. The inner dimension may be summed in any order as long as both factors agree: a lane
// (g, t) reads the eight neighbouring inputs 32 c + 8 t.. of rows g and g + 8 at once, as its part of two products, and the
// same of token g. Weights go from memory to the registers in which they are used, and through nothing else.
//
// The eight warps of a block take turns along the rows, 128 inputs each, and add up at the end. A warp keeps 4 KiB of
// weights in flight: as soon as a part is used, its successor is asked for. With 24 warps on an SM these are 96 KiB;
// by Little's law 4.8 TB/s / 132 SMs x 1 us of loaded latency wants 36 KiB. A model of 4096 inputs and outputs makes 256
// blocks of one product, which fit the 132 SMs side by side.

#define WARPS 8
#define ROWS 16
#define TOKENS 8
// Parts of 32 inputs that a warp has in flight.
#define PARTS 4
#define LOG2_E 1.4426950408889634f

// The sums of a block: by warp, row and token.
struct Sums {
    float of[WARPS][ROWS][TOKENS];
};

// Rows `first` + g and `second` + g, if they are below `end`, times every token; the block's sums lie in `sums` then.
__device__ __forceinline__ void multiply(const u16* in, const u16* weight, u32 count, u32 inputs, u32 first, u32 second, u32 end,
                                         Sums& sums) {
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    // Inputs that a lane begins with, and those between two turns of a warp.
    u32 at = warp * PARTS * 32 + t * 8;
    const u32 step = WARPS * PARTS * 32;
    // Where a row or token is not there, another is read in its place, and what comes of it is not used.
    const u16* upper = weight + (u64)min(first + g, end - 1) * inputs + at;
    const u16* lower = weight + (u64)min(second + g, end - 1) * inputs + at;
    const u16* token = in + (u64)min(g, count - 1) * inputs + at;
    uint4 uppers[PARTS], lowers[PARTS], values[PARTS];
    const auto load = [&](u32 part) {
        const uint4 nothing = {0, 0, 0, 0};
        uppers[part] = lowers[part] = values[part] = nothing;
        if (at + part * 32 >= inputs) return;
        uppers[part] = load_once(upper + part * 32);
        lowers[part] = load_once(lower + part * 32);
        values[part] = *(const uint4*)(token + part * 32);
    };
#pragma unroll
    for (u32 part = 0; part < PARTS; part++) load(part);
    float own[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    // Whether the warp's turn has inputs at all is the same for its lanes.
    while (at - t * 8 < inputs) {
        at += step, upper += step, lower += step, token += step;
#pragma unroll
        for (u32 part = 0; part < PARTS; part++) {
            const uint4 u = uppers[part], l = lowers[part], x = values[part];
            const u32 a[4] = {u.x, l.x, u.y, l.y}, b[4] = {u.z, l.z, u.w, l.w};
            multiply_tile(own, a, x.x, x.y);
            multiply_tile(own, b, x.z, x.w);
            load(part);
        }
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++) sums.of[warp][g + i / 2 * 8][t * 2 + i % 2] = own[i];
    __syncthreads();
}

__device__ __forceinline__ float sum_of(const Sums& sums, u32 row, u32 token) {
    float sum = 0.0f;
#pragma unroll
    for (u32 warp = 0; warp < WARPS; warp++) sum += sums.of[warp][row][token];
    return sum;
}

// out[token, n] = sum over k of in[token, k] * weight[n, k], out [count, outputs].
KERNEL(skinny_product_bf16, 256, 3, const u16* in, const u16* weight, u16* out, u32 count, u32 inputs, u32 outputs) {
    __shared__ Sums sums;
    const u32 first = blockIdx.x * ROWS, row = threadIdx.x % ROWS, token = threadIdx.x / ROWS;
    multiply(in, weight, count, inputs, first, first + 8, outputs, sums);
    if (token < count && first + row < outputs) out[(u64)token * outputs + first + row] = to_bf16(sum_of(sums, row, token));
}

KERNEL(skinny_product_f32, 256, 3, const u16* in, const u16* weight, float* out, u32 count, u32 inputs, u32 outputs) {
    __shared__ Sums sums;
    const u32 first = blockIdx.x * ROWS, row = threadIdx.x % ROWS, token = threadIdx.x / ROWS;
    multiply(in, weight, count, inputs, first, first + 8, outputs, sums);
    if (token < count && first + row < outputs) out[(u64)token * outputs + first + row] = sum_of(sums, row, token);
}

// The gated half of a feed-forward layer: out[token, n] = silu(in * gate[n]) * (in * up[n]), where weight [2 * intermediate,
// inputs] holds the rows of gate, then those of up; out [count, intermediate] bf16. Eight rows of each make a tile, so that
// what belongs together meets in one block. Grid (ceil(intermediate / 8)), block 256.
KERNEL(skinny_gated, 256, 3, const u16* in, const u16* weight, u16* out, u32 count, u32 inputs, u32 intermediate) {
    __shared__ Sums sums;
    const u32 first = blockIdx.x * 8, row = threadIdx.x % 8, token = threadIdx.x / 8;
    multiply(in, weight, count, inputs, first, intermediate + first, 2 * intermediate, sums);
    if (token >= count || first + row >= intermediate) return;
    const float gate = sum_of(sums, row, token), up = sum_of(sums, row + 8, token);
    out[(u64)token * intermediate + first + row] = to_bf16(gate / (1.0f + exp2_fast(-gate * LOG2_E)) * up);
}
