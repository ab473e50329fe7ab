// Between the projection and attention: bias, norm of each head, rotation, and the way into the cache.
//
// qkv [count, (heads + 2 * kv_heads) * width] bf16: queries, keys, values of a token; the queries are written back, keys
// and values are left as they were. bias [(heads + 2 * kv_heads) * width] f32 (optional), query_norm and key_norm [width]
// f32 (optional, each), inverse_frequencies [width / 2] f32. positions [count]; slots [count]: block * 16 + position % 16,
// or NONE to store nothing. keys and values [blocks, kv_heads, 16, width] bf16, of one layer.
// Rounded to bf16 once, at the end. Width is at most 256.
// Grid (count, ceil((heads + 2 * kv_heads) / 4)), block 128: a warp to a head.
//
// A lane holds two neighbouring pairs (i, i + half) at a time, so that a warp reads 128 bytes with each load.

// Turns of pairs a lane may hold: 256 / 2 pairs, 64 by a warp at a time.
#define TURNS 2

// Cosine and sine of any angle, to f32's precision: in double precision what is left of the angle after whole quarters of
// a turn is exact enough for positions beyond any window, and no table in local memory is needed, as in sincosf.
__device__ __forceinline__ void turn(float angle, float& cosine, float& sine) {
    const double quarters = rint((double)angle * 0.6366197723675814);
    const double left = fma(quarters, -6.123233995736766e-17, fma(quarters, -1.5707963267948966, (double)angle));
    const float x = (float)left, square = x * x;
    // Least-maximum polynomials on [-pi / 4, pi / 4].
    float s = fmaf(square, 2.718311493989822e-6f, -1.984090049751103e-4f);
    s = fmaf(square, s, 8.333329385889463e-3f);
    s = fmaf(square, s, -1.666666547107211e-1f);
    s = fmaf(square * x, s, x);
    float c = fmaf(square, 2.443315711809948e-5f, -1.388731625493765e-3f);
    c = fmaf(square, c, 4.166664568298827e-2f);
    c = fmaf(square, c, -0.5f);
    c = fmaf(square, c, 1.0f);
    const u32 quarter = (u32)(long long)quarters & 3;
    const float even = quarter & 1 ? s : c, odd = quarter & 1 ? c : s;
    cosine = quarter == 1 || quarter == 2 ? -even : even;
    sine = quarter >= 2 ? -odd : odd;
}

KERNEL(rotate_and_store, 128, 1, u16* qkv, const float* bias, const float* query_norm, const float* key_norm,
       float epsilon, const float* inverse_frequencies, float amplitude, const u32* positions, const u32* slots, u16* keys,
       u16* values, u32 heads, u32 kv_heads, u32 width) {
    const u32 head = blockIdx.y * 4 + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (head >= heads + 2 * kv_heads) return;
    const u32 token = blockIdx.x, half = width / 2;
    const bool query = head < heads, value = head >= heads + kv_heads;
    u16* row = qkv + ((u64)token * (heads + 2 * kv_heads) + head) * width;
    const u32 slot = slots[token];
    if (!query && slot == NONE) return;

    // first[] belongs to pairs i and i + 1, second[] to their partners half a head further.
    float first[TURNS][2], second[TURNS][2];
    float squares = 0.0f;
#pragma unroll
    for (u32 k = 0; k < TURNS; k++) {
        const u32 at = k * 2 * WARP + lane * 2;
        first[k][0] = first[k][1] = second[k][0] = second[k][1] = 0.0f;
        if (at >= half) continue;
        const u32 a = *(const u32*)(row + at), b = *(const u32*)(row + half + at);
        first[k][0] = low_bf16(a), first[k][1] = high_bf16(a), second[k][0] = low_bf16(b), second[k][1] = high_bf16(b);
        if (bias) {
            const float* own = bias + head * width + at;
            first[k][0] += own[0], first[k][1] += own[1], second[k][0] += own[half], second[k][1] += own[half + 1];
        }
#pragma unroll
        for (u32 i = 0; i < 2; i++) squares += first[k][i] * first[k][i] + second[k][i] * second[k][i];
    }
    if (!value) {
        const float* norm = query ? query_norm : key_norm;
        const float scale = norm ? 1.0f / sqrtf(warp_sum(squares) / (float)width + epsilon) : 1.0f;
        const float position = (float)positions[token];
#pragma unroll
        for (u32 k = 0; k < TURNS; k++) {
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                const u32 at = k * 2 * WARP + lane * 2 + i;
                if (at >= half) continue;
                float cosine, sine;
                turn(position * inverse_frequencies[at], cosine, sine);
                cosine *= amplitude, sine *= amplitude;
                const float a = norm ? first[k][i] * scale * norm[at] : first[k][i];
                const float b = norm ? second[k][i] * scale * norm[half + at] : second[k][i];
                first[k][i] = a * cosine - b * sine;
                second[k][i] = b * cosine + a * sine;
            }
        }
    }
    u16* out = row;
    if (!query) {
        const u32 kv_head = value ? head - heads - kv_heads : head - heads;
        const u64 line = ((u64)(slot / BLOCK) * kv_heads + kv_head) * BLOCK + slot % BLOCK;
        out = (value ? values : keys) + line * width;
    }
#pragma unroll
    for (u32 k = 0; k < TURNS; k++) {
        const u32 at = k * 2 * WARP + lane * 2;
        if (at >= half) continue;
        *(u32*)(out + at) = pack_bf16(first[k][0], first[k][1]);
        *(u32*)(out + half + at) = pack_bf16(second[k][0], second[k][1]);
    }
}
