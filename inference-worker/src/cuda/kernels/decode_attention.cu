// Attention of one token of each sequence over the paged cache, and the merge of its splits.
//
// qkv [sequences, stride] bf16: the rotated queries of each token stand first in its row, [heads, width]; stride is a
// multiple of 8. keys and values [blocks, kv_heads, 16, width] bf16, of one layer. tables [sequences, table_stride].
// contexts [sequences]: the positions stored, the token's own with them; 0 for a row that is not in use, which gives
// zeros. A token sees the last `window` positions, its own with them; 0 for all. scale is 1 / sqrt(width).
// out [sequences, heads, width] bf16.
//
// A context is cut into splits of whole blocks of the cache; how many is decided here, from contexts, so that a captured
// graph serves other lengths: blocks_per_split = max(blocks_least, ceil(blocks / gridDim.y)), rounded up to 4. A context
// of one split goes straight to `out`. Of several, each leaves its part: parts [sequences, heads, gridDim.y, width] f32,
// not yet divided by the sum of weights, and sums [sequences, heads, gridDim.y, 2] f32: largest score (times log2 e) and
// sum of weights. `merge_splits`, launched after it with the same gridDim.y as `splits`, makes `out` of them; with one
// split (gridDim.y = 1) it need not be launched, and parts and sums may be null.
//
// Grid (kv_heads * ceil(heads / kv_heads / 8), splits, sequences), block 128.
// A good number of splits: clamp(ceil(396 / (gridDim.x * sequences)), 1, 64), since 396 blocks fill an H200 (132 SMs of 3
// blocks each), with blocks_least = 4, one for each warp: a single sequence of 1024 positions and 8 KV heads then has all
// its keys and values in flight at once, from 128 SMs, where 8 would leave half of them idle.
//
// How it works. Decoding is bound by the bytes of keys and values, so each is read once, 16 bytes a lane, straight into
// the registers from which the tensor cores take it: nothing passes through shared memory. Eight query heads that share
// a KV head are the 8 columns of a product; 16 positions are its 16 rows, and the products are transposed for that:
//
//   scores^T [16 positions, 8 queries] = keys [16, width] * queries^T,   out^T [width, 8] += values^T [width, 16] * weights^T
//
// In what order the inner dimension is summed is free as long as both factors agree. So a lane (g, t) takes the eight
// neighbouring dimensions 32 c + 8 t.. of positions g and g + 8 as its part of two products; and of the values eight
// neighbouring dimensions 8 g.. of positions 2t, 2t + 1, 2t + 8, 2t + 9, one byte permutation away from the pairs of
// positions that a fragment holds.
//
// Each of the four warps takes every fourth block of the cache with sums of its own; they are merged at the end. A warp
// has 16 positions of keys and of values in flight, 8 KiB at a width of 128, and asks for the next keys before it weighs
// the present ones, and for the next values before the next scores. With 12 warps on an SM that is 48 to 96 KiB in
// flight; by Little's law 4.8 TB/s / 132 SMs x 1 us of loaded latency wants 36 KiB. Arithmetic is far from a bound: 32
// flops of tensor cores for each 2 bytes, 69 TFLOP/s at 4.3 TB/s.

// How much a score may exceed the scale of the sums before they are scaled anew, in powers of two: weights up to 2^8
// are as exact in bf16 and f32 as those up to 1, and so nearly every block is spared the reduction.
#define SLACK 8.0f
#define LOG2_E 1.4426950408889634f
#define WARPS 4
#define QUERIES 8

// What a block of threads leaves for its merge: by warp and query.
template <u32 width>
struct Shares {
    // 4 values of padding, so that the eight queries' rows begin in different banks.
    float sums[WARPS][QUERIES][width + 4];
    float largest[WARPS][QUERIES];
    float totals[WARPS][QUERIES];
};

template <u32 width>
struct Keys {
    // By chunk of 32 dimensions, and the two rows g and g + 8.
    uint4 of[width / 32][2];
};

template <u32 width>
struct Values {
    // By chunk of 64 dimensions, and the four positions.
    uint4 of[width / 64][4];
};

template <u32 width>
__device__ __forceinline__ void load_keys(Keys<width>& keys, const u16* block, u32 g, u32 t) {
#pragma unroll
    for (u32 chunk = 0; chunk < width / 32; chunk++) {
#pragma unroll
        for (u32 row = 0; row < 2; row++) keys.of[chunk][row] = load_once(block + (g + row * 8) * width + chunk * 32 + t * 8);
    }
}

template <u32 width>
__device__ __forceinline__ void load_values(Values<width>& values, const u16* block, u32 g, u32 t) {
#pragma unroll
    for (u32 chunk = 0; chunk < width / 64; chunk++) {
#pragma unroll
        for (u32 row = 0; row < 4; row++) {
            const u32 position = 2 * t + row % 2 + row / 2 * 8;
            values.of[chunk][row] = load_once(block + position * width + chunk * 64 + g * 8);
        }
    }
}

__device__ __forceinline__ u32 word(const uint4& of, u32 at) { return at == 0 ? of.x : at == 1 ? of.y : at == 2 ? of.z : of.w; }

// The same half of two words, side by side.
__device__ __forceinline__ u32 halves(u32 low, u32 high, u32 half) { return __byte_perm(low, high, half ? 0x7632 : 0x5410); }

template <u32 width>
__device__ __forceinline__ void attend(const u16* qkv, u32 stride, const u16* keys, const u16* values, const u32* tables,
                                       u32 table_stride, const u32* contexts, float scale, u32 window, u32 heads,
                                       u32 kv_heads, u32 blocks_least, float* parts, float* sums, u16* out,
                                       Shares<width>* shares) {
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const u32 group = heads / kv_heads, tiles = (group + QUERIES - 1) / QUERIES;
    const u32 kv_head = blockIdx.x / tiles, tile = blockIdx.x % tiles * QUERIES;
    const u32 sequence = blockIdx.z, split = blockIdx.y, queries = min(group - tile, (u32)QUERIES);
    const u32 positions = contexts[sequence], first_head = kv_head * group + tile;
    u16* own_out = out + ((u64)sequence * heads + first_head) * width;
    if (positions == 0) {
        if (split == 0)
            for (u32 at = threadIdx.x; at < queries * width; at += WARPS * WARP) own_out[at] = 0;
        return;
    }
    const Splits splits = cut(positions, window, blocks_least, gridDim.y);
    if (split >= splits.used) return;
    const u32 end = min(splits.first + (split + 1) * splits.blocks_per_split, splits.last);
    const u32* table = tables + (u64)sequence * table_stride;
    const u64 block_stride = (u64)kv_heads * BLOCK * width;
    keys += (u64)kv_head * BLOCK * width;
    values += (u64)kv_head * BLOCK * width;

    Keys<width> own_keys;
    Values<width> own_values;
    u32 block = splits.first + split * splits.blocks_per_split + warp;
    u32 place = 0, next_place = 0;
    if (block < end) {
        place = table[block];
        if (block + WARPS < end) next_place = table[block + WARPS];
        load_keys<width>(own_keys, keys + place * block_stride, g, t);
        load_values<width>(own_values, values + place * block_stride, g, t);
    }
    // Column g of the queries: as the keys' rows, eight neighbouring dimensions of each 32.
    uint4 query[width / 32];
    {
        const u16* row = qkv + (u64)sequence * stride + (first_head + min(g, queries - 1)) * width;
#pragma unroll
        for (u32 chunk = 0; chunk < width / 32; chunk++) query[chunk] = *(const uint4*)(row + chunk * 32 + t * 8);
    }

    // Rows g and g + 8 of a fragment are dimensions 8 g + j and that of the upper half: 64 further, or 4 where there are
    // only 64. Columns are queries 2t and 2t + 1.
    const u32 pieces = width / 16;
    float mixed[pieces][4];
#pragma unroll
    for (u32 j = 0; j < pieces; j++) mixed[j][0] = mixed[j][1] = mixed[j][2] = mixed[j][3] = 0.0f;
    // The sums of weights are those of their rounded values, so that a weight which outdoes all others divides by itself:
    // ones times the weights, so that all rows are the same.
    float largest[2] = {LOWEST, LOWEST}, totals[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    const u32 ones[4] = {ONES, ONES, ONES, ONES};
    const float scale2 = scale * LOG2_E;

    for (; block < end; block += WARPS) {
        float scores[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (u32 chunk = 0; chunk < width / 32; chunk++) {
            const uint4 upper = own_keys.of[chunk][0], lower = own_keys.of[chunk][1], q = query[chunk];
            const u32 first[4] = {upper.x, lower.x, upper.y, lower.y}, second[4] = {upper.z, lower.z, upper.w, lower.w};
            multiply_tile(scores, first, q.x, q.y);
            multiply_tile(scores, second, q.z, q.w);
        }
        const bool more = block + WARPS < end;
        const u32 next = next_place;
        if (more) {
            load_keys<width>(own_keys, keys + next * block_stride, g, t);
            if (block + 2 * WARPS < end) next_place = table[block + 2 * WARPS];
        }

        // Outside of from..positions nothing is seen, and what lies there may be anything, even NaN.
        const u32 start = block * BLOCK;
        const bool at_border = start < splits.from || start + BLOCK > positions;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 position = start + g + i / 2 * 8;
            scores[i] *= scale2;
            if (position < splits.from || position >= positions) scores[i] = LOWEST;
        }
        const float over0 = fmaxf(scores[0], scores[2]), over1 = fmaxf(scores[1], scores[3]);
        if (__any_sync(ALL_LANES, over0 > largest[0] + SLACK || over1 > largest[1] + SLACK)) {
            float news[2] = {over0, over1};
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
#pragma unroll
                for (u32 apart = 4; apart < WARP; apart *= 2) news[i] = fmaxf(news[i], __shfl_xor_sync(ALL_LANES, news[i], apart));
                news[i] = fmaxf(news[i], largest[i]);
                // At the first block of a warp this is 2^-infinity = 0, or NaN if nothing of it was seen.
                const float factor = news[i] == LOWEST ? 1.0f : exp2_fast(largest[i] - news[i]);
                largest[i] = news[i];
                totals[i] *= factor;
#pragma unroll
                for (u32 j = 0; j < pieces; j++) mixed[j][i] *= factor, mixed[j][2 + i] *= factor;
            }
        }
        float weights[4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) weights[i] = scores[i] == LOWEST ? 0.0f : exp2_fast(scores[i] - largest[i % 2]);
        // By position and query until here; as the right factor of a product a lane holds pairs of positions of a query.
        const u32 b0 = transpose(pack_bf16(weights[0], weights[1])), b1 = transpose(pack_bf16(weights[2], weights[3]));
        multiply_tile(totals, ones, b0, b1);

        if (at_border) {
#pragma unroll
            for (u32 row = 0; row < 4; row++) {
                const u32 position = start + 2 * t + row % 2 + row / 2 * 8;
                if (position >= splits.from && position < positions) continue;
                const uint4 nothing = {0, 0, 0, 0};
#pragma unroll
                for (u32 chunk = 0; chunk < width / 64; chunk++) own_values.of[chunk][row] = nothing;
            }
        }
#pragma unroll
        for (u32 j = 0; j < pieces; j++) {
            const uint4(&low)[4] = own_values.of[0];
            const uint4(&high)[4] = own_values.of[width / 64 - 1];
            const u32 k = width == 64 ? j + 4 : j;
            const u32 a[4] = {
                halves(word(low[0], j / 2), word(low[1], j / 2), j % 2),
                halves(word(high[0], k / 2), word(high[1], k / 2), k % 2),
                halves(word(low[2], j / 2), word(low[3], j / 2), j % 2),
                halves(word(high[2], k / 2), word(high[3], k / 2), k % 2),
            };
            multiply_tile(mixed[j], a, b0, b1);
        }
        if (more) load_values<width>(own_values, values + next * block_stride, g, t);
    }

    // The warps add up their blocks.
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        if (g == 0) {
            shares->largest[warp][2 * t + i] = largest[i];
            shares->totals[warp][2 * t + i] = totals[i];
        }
#pragma unroll
        for (u32 j = 0; j < pieces; j += 4) {
            float* row = shares->sums[warp][2 * t + i] + g * 8;
            float4 four = {mixed[j][i], mixed[j + 1][i], mixed[j + 2][i], mixed[j + 3][i]};
            *(float4*)(row + j) = four;
            float4 others = {mixed[j][2 + i], mixed[j + 1][2 + i], mixed[j + 2][2 + i], mixed[j + 3][2 + i]};
            *(float4*)(row + j + (width == 64 ? 4 : 64)) = others;
        }
    }
    __syncthreads();
    for (u32 at = threadIdx.x; at < queries * width; at += WARPS * WARP) {
        const u32 q = at / width, dimension = at % width;
        float most = LOWEST;
#pragma unroll
        for (u32 w = 0; w < WARPS; w++) most = fmaxf(most, shares->largest[w][q]);
        float sum = 0.0f, total = 0.0f;
#pragma unroll
        for (u32 w = 0; w < WARPS; w++) {
            const float factor = exp2_fast(shares->largest[w][q] - most);
            sum += shares->sums[w][q][dimension] * factor;
            total += shares->totals[w][q] * factor;
        }
        if (splits.used == 1) {
            own_out[at] = to_bf16(sum / total);
        } else {
            const u64 part = ((u64)sequence * heads + first_head + q) * gridDim.y + split;
            parts[part * width + dimension] = sum;
            if (dimension == 0) sums[part * 2] = most, sums[part * 2 + 1] = total;
        }
    }
}

KERNEL(decode_attention_64, 128, 3, const u16* qkv, u32 stride, const u16* keys, const u16* values, const u32* tables,
       u32 table_stride, const u32* contexts, float scale, u32 window, u32 heads, u32 kv_heads, u32 width, u32 blocks_least,
       float* parts, float* sums, u16* out) {
    __shared__ Shares<64> shares;
    attend<64>(qkv, stride, keys, values, tables, table_stride, contexts, scale, window, heads, kv_heads, blocks_least, parts,
               sums, out, &shares);
}

KERNEL(decode_attention_128, 128, 3, const u16* qkv, u32 stride, const u16* keys, const u16* values, const u32* tables,
       u32 table_stride, const u32* contexts, float scale, u32 window, u32 heads, u32 kv_heads, u32 width, u32 blocks_least,
       float* parts, float* sums, u16* out) {
    __shared__ Shares<128> shares;
    attend<128>(qkv, stride, keys, values, tables, table_stride, contexts, scale, window, heads, kv_heads, blocks_least, parts,
                sums, out, &shares);
}

// Grid (heads, sequences), block 128. Sequences of one split are left as they are.
KERNEL(merge_splits, 128, 1, const float* parts, const float* sums, const u32* contexts, u32 window, u32 heads, u32 width,
       u32 blocks_least, u32 splits, u16* out) {
    const u32 positions = contexts[blockIdx.y];
    if (positions == 0) return;
    const u32 used = cut(positions, window, blocks_least, splits).used;
    if (used <= 1) return;
    const u64 row = (u64)blockIdx.y * heads + blockIdx.x;
    sums += row * splits * 2;
    parts += row * splits * width;
    float most = LOWEST;
    for (u32 split = 0; split < used; split++) most = fmaxf(most, sums[split * 2]);
    for (u32 dimension = threadIdx.x; dimension < width; dimension += 128) {
        float sum = 0.0f, total = 0.0f;
#pragma unroll 4
        for (u32 split = 0; split < used; split++) {
            const float factor = exp2_fast(sums[split * 2] - most);
            sum += parts[(u64)split * width + dimension] * factor;
            total += sums[split * 2 + 1] * factor;
        }
        out[row * width + dimension] = to_bf16(sum / total);
    }
}
