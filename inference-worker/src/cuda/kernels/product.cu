// out[token, n] = sum over k of in[token, k] * weight[n, k]: what cuBLASLt computes where it is there.
//
// in [count, inputs] bf16, weight [outputs, inputs] bf16, out [count, outputs].
// Grid (ceil(outputs / 32), ceil(count / 32)), block 256.
//
// Correct and plain: tiles of 32 x 32 outputs pass through shared memory 64 inputs at a time, and a thread sums four
// outputs. A row of a tile is padded by two values, so that the rows which a warp reads begin in different banks.

#define STEP 64
#define PADDED (STEP + 2)

__device__ __forceinline__ void multiply(const u16* in, const u16* weight, u32 count, u32 inputs, u32 outputs, u16* ins,
                                         u16* weights, float (&sums)[4]) {
    const u32 output = blockIdx.x * 32, token = blockIdx.y * 32;
    const u32 column = threadIdx.x % 32, row = threadIdx.x / 32;
    for (u32 start = 0; start < inputs; start += STEP) {
        for (u32 at = threadIdx.x; at < 32 * STEP; at += 256) {
            const u32 line = at / STEP, k = start + at % STEP;
            ins[line * PADDED + at % STEP] = k < inputs && token + line < count ? in[(u64)(token + line) * inputs + k] : 0;
            weights[line * PADDED + at % STEP] =
                k < inputs && output + line < outputs ? weight[(u64)(output + line) * inputs + k] : 0;
        }
        __syncthreads();
        for (u32 k = 0; k < STEP; k += 2) {
            const u32 pair = *(const u32*)(weights + column * PADDED + k);
#pragma unroll
            for (u32 part = 0; part < 4; part++) {
                const u32 left = *(const u32*)(ins + (row + part * 8) * PADDED + k);
                sums[part] += low_bf16(left) * low_bf16(pair);
                sums[part] += high_bf16(left) * high_bf16(pair);
            }
        }
        __syncthreads();
    }
}

KERNEL(product_bf16, 256, 1, const u16* in, const u16* weight, u16* out, u32 count, u32 inputs, u32 outputs) {
    __shared__ __align__(16) u16 ins[32 * PADDED];
    __shared__ __align__(16) u16 weights[32 * PADDED];
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    multiply(in, weight, count, inputs, outputs, ins, weights, sums);
    const u32 output = blockIdx.x * 32 + threadIdx.x % 32;
    for (u32 part = 0; part < 4; part++) {
        const u32 token = blockIdx.y * 32 + threadIdx.x / 32 + part * 8;
        if (token < count && output < outputs) out[(u64)token * outputs + output] = to_bf16(sums[part]);
    }
}

KERNEL(product_f32, 256, 1, const u16* in, const u16* weight, float* out, u32 count, u32 inputs, u32 outputs) {
    __shared__ __align__(16) u16 ins[32 * PADDED];
    __shared__ __align__(16) u16 weights[32 * PADDED];
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    multiply(in, weight, count, inputs, outputs, ins, weights, sums);
    const u32 output = blockIdx.x * 32 + threadIdx.x % 32;
    for (u32 part = 0; part < 4; part++) {
        const u32 token = blockIdx.y * 32 + threadIdx.x / 32 + part * 8;
        if (token < count && output < outputs) out[(u64)token * outputs + output] = sums[part];
    }
}
