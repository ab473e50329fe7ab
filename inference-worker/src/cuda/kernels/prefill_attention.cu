// Causal attention of runs of tokens over the paged cache, in which their own keys and values already stand.
//
// qkv, stride, keys, values, tables, table_stride, scale, window, heads, kv_heads, width and out as in decode attention,
// with a row of qkv and of out for each token of the batch: out [count, heads, width] bf16.
// tiles [gridDim.x, 4]: sequence (row of tables), first token (row of qkv), tokens, position of the first token. The host
// cuts each run of neighbouring tokens of one sequence into tiles of at most 128 / (heads / kv_heads) tokens, and lists
// those with the longest contexts first. Rows that no tile names are left as they were. A tile of 0 tokens does nothing.
//
// Grid (tiles, kv_heads), block 128. heads / kv_heads is at most 128.
// Dynamic shared memory: 64 KiB for _128, 32 KiB for _64.
//
// How it works. The 128 rows of a tile are pairs of token and query head that share a KV head, so that a group reads its
// keys and values once whatever the number of tokens. Four warps hold 32 rows each: with two fragments of 16 rows a warp
// uses each fragment of keys or values that it reads from shared memory twice. For 64 positions at a width of 128 a warp
// reads 8 KiB of queries, 16 of keys and 16 of values, 320 clocks at 128 bytes a clock, beside 2 MFLOP of products, 410
// clocks of the 2500 flops that mma.sync does on an SM: the tensor cores are the bound. From L2 an SM takes 32 KiB for
// 128 rows x 64 positions, 128 flops a byte, a quarter of what L2 gives at 300 TFLOP/s.
// Two blocks fit an SM (64 KiB and 255 registers each); while one waits at a barrier or weighs, the other multiplies.
// Copies are asynchronous: values arrive while scores are computed, the next keys while weights and sums are.
//
// Rows of shared memory are `width` values long without padding; the place of 16 bytes within a row is exclusive-ored
// with the row's number modulo 8, so that the eight rows of a matrix lie in different banks.

#define LOG2_E 1.4426950408889634f
#define ROWS 128
#define WARPS 4
// Fragments of 16 rows of a warp.
#define FRAGMENTS 2
#define POSITIONS 64

// Where eight values of a row lie.
template <u32 width>
__device__ __forceinline__ u16* place(u16* matrix, u32 row, u32 eight) {
    return matrix + row * width + (eight ^ row % 8) * 8;
}

// Asks for 64 positions from `start` of the keys or the values of a head; zeros from position `end` on, so that weights
// of 0 meet numbers.
template <u32 width>
__device__ __forceinline__ void fetch(u16* matrix, const u16* cache, const u32* table, u64 block_stride, u32 start, u32 end) {
    const u32 eights = width / 8;
#pragma unroll
    for (u32 at = threadIdx.x; at < POSITIONS * eights; at += WARPS * WARP) {
        const u32 row = at / eights, eight = at % eights, position = start + row;
        const bool there = position < end;
        const u16* from = cache;
        if (there) from += table[position / BLOCK] * block_stride + position % BLOCK * width + eight * 8;
        copy_async(place<width>(matrix, row, eight), from, there);
    }
    commit_async();
}

template <u32 width>
__device__ __forceinline__ void attend(const u16* qkv, u32 stride, const u16* keys, const u16* values, const u32* tables,
                                       u32 table_stride, const u32* tiles, float scale, u32 window, u32 heads, u32 kv_heads,
                                       u16* out, u16* shared) {
    u16* const own_queries = shared;
    u16* const own_keys = own_queries + ROWS * width;
    u16* const own_values = own_keys + POSITIONS * width;
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const u32 group = heads / kv_heads, kv_head = blockIdx.y;
    const u32* tile = tiles + blockIdx.x * 4;
    const u32 first_token = tile[1], tokens = tile[2], first_position = tile[3];
    if (tokens == 0) return;
    const u32* table = tables + (u64)tile[0] * table_stride;
    const u64 block_stride = (u64)kv_heads * BLOCK * width;
    keys += (u64)kv_head * BLOCK * width;
    values += (u64)kv_head * BLOCK * width;
    const u32 rows = tokens * group, end = first_position + tokens;
    const u32 from = window > 0 && first_position + 1 > window ? first_position + 1 - window : 0;

    {
        const u32 eights = width / 8;
#pragma unroll
        for (u32 at = threadIdx.x; at < ROWS * eights; at += WARPS * WARP) {
            const u32 row = at / eights, eight = at % eights;
            const u32 token = first_token + row / group, head = kv_head * group + row % group;
            const u16* source = qkv;
            if (row < rows) source += (u64)token * stride + head * width + eight * 8;
            copy_async(place<width>(own_queries, row, eight), source, row < rows);
        }
        commit_async();
    }
    // Whole blocks of the cache, so that a block is looked up for 16 neighbouring rows.
    u32 start = from / BLOCK * BLOCK;
    fetch<width>(own_keys, keys, table, block_stride, start, end);

    // Positions of the rows g and g + 8 of each fragment, and the bounds of what the warp sees.
    const u32 own_row = warp * (FRAGMENTS * 16);
    u32 positions[FRAGMENTS][2];
#pragma unroll
    for (u32 f = 0; f < FRAGMENTS; f++) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) positions[f][i] = first_position + (own_row + f * 16 + i * 8 + g) / group;
    }
    const u32 earliest = first_position + own_row / group, latest = first_position + (own_row + FRAGMENTS * 16 - 1) / group;
    const bool idle = own_row >= rows;

    float mixed[FRAGMENTS][width / 8][4];
    float largest[FRAGMENTS][2], totals[FRAGMENTS][2];
#pragma unroll
    for (u32 f = 0; f < FRAGMENTS; f++) {
        largest[f][0] = largest[f][1] = LOWEST;
        totals[f][0] = totals[f][1] = 0.0f;
#pragma unroll
        for (u32 j = 0; j < width / 8; j++) mixed[f][j][0] = mixed[f][j][1] = mixed[f][j][2] = mixed[f][j][3] = 0.0f;
    }
    const float scale2 = scale * LOG2_E;
    // The row, and the second or first eight of sixteen, that a lane names when four matrices are read.
    const u32 matrix = lane / 8, line = lane % 8;

    for (; start < end; start += POSITIONS) {
        // All keys are there, and nobody reads the last values any more.
        await_async<0>();
        __syncthreads();
        fetch<width>(own_values, values, table, block_stride, start, end);
        // A warp has nothing to do with positions after its last, or before its first row's window.
        const bool sees = !idle && start <= latest && (window == 0 || start + POSITIONS + window > earliest + 1);
        float scores[FRAGMENTS][POSITIONS / 8][4];
        if (sees) {
#pragma unroll
            for (u32 f = 0; f < FRAGMENTS; f++) {
#pragma unroll
                for (u32 j = 0; j < POSITIONS / 8; j++)
                    scores[f][j][0] = scores[f][j][1] = scores[f][j][2] = scores[f][j][3] = 0.0f;
            }
#pragma unroll
            for (u32 step = 0; step < width / 16; step++) {
                u32 a[FRAGMENTS][4];
#pragma unroll
                for (u32 f = 0; f < FRAGMENTS; f++)
                    load_rows(a[f], place<width>(own_queries, own_row + f * 16 + matrix % 2 * 8 + line, step * 2 + matrix / 2));
#pragma unroll
                for (u32 j = 0; j < POSITIONS / 8; j += 2) {
                    u32 b[4];
                    load_rows(b, place<width>(own_keys, j * 8 + matrix / 2 * 8 + line, step * 2 + matrix % 2));
#pragma unroll
                    for (u32 f = 0; f < FRAGMENTS; f++) {
                        multiply_tile(scores[f][j], a[f], b[0], b[1]);
                        multiply_tile(scores[f][j + 1], a[f], b[2], b[3]);
                    }
                }
            }
        }
        // All values are there, and nobody reads the keys any more.
        await_async<0>();
        __syncthreads();
        if (start + POSITIONS < end) fetch<width>(own_keys, keys, table, block_stride, start + POSITIONS, end);
        if (!sees) continue;

        const bool at_border = start + POSITIONS > earliest + 1 || (window > 0 && start + window <= latest);
#pragma unroll
        for (u32 f = 0; f < FRAGMENTS; f++) {
            if (at_border) {
#pragma unroll
                for (u32 j = 0; j < POSITIONS / 8; j++) {
#pragma unroll
                    for (u32 i = 0; i < 4; i++) {
                        const u32 position = start + j * 8 + t * 2 + i % 2, own = positions[f][i / 2];
                        if (position > own || (window > 0 && position + window <= own)) scores[f][j][i] = LOWEST;
                    }
                }
            }
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                float most = LOWEST;
#pragma unroll
                for (u32 j = 0; j < POSITIONS / 8; j++) most = fmaxf(most, fmaxf(scores[f][j][2 * i], scores[f][j][2 * i + 1]));
                most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
                most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
                most = fmaxf(most * scale2, largest[f][i]);
                // A row that has seen nothing yet keeps sums of 0 under any scale.
                const float base = most == LOWEST ? 0.0f : most;
                const float factor = exp2_fast(largest[f][i] - base);
                largest[f][i] = most;
                float total = 0.0f;
#pragma unroll
                for (u32 j = 0; j < POSITIONS / 8; j++) {
#pragma unroll
                    for (u32 k = 2 * i; k < 2 * i + 2; k++) {
                        scores[f][j][k] = exp2_fast(fmaf(scores[f][j][k], scale2, -base));
                        total += scores[f][j][k];
                    }
                }
                totals[f][i] = totals[f][i] * factor + total;
#pragma unroll
                for (u32 j = 0; j < width / 8; j++) mixed[f][j][2 * i] *= factor, mixed[f][j][2 * i + 1] *= factor;
            }
        }
#pragma unroll
        for (u32 step = 0; step < POSITIONS / 16; step++) {
            // Sums of scores lie as a left factor wants its pairs.
            u32 a[FRAGMENTS][4];
#pragma unroll
            for (u32 f = 0; f < FRAGMENTS; f++) {
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    const float* pair = scores[f][step * 2 + i / 2] + i % 2 * 2;
                    a[f][i] = pack_bf16(pair[0], pair[1]);
                }
            }
#pragma unroll
            for (u32 j = 0; j < width / 8; j += 2) {
                u32 b[4];
                load_columns(b, place<width>(own_values, step * 16 + matrix % 2 * 8 + line, j + matrix / 2));
#pragma unroll
                for (u32 f = 0; f < FRAGMENTS; f++) {
                    multiply_tile(mixed[f][j], a[f], b[0], b[1]);
                    multiply_tile(mixed[f][j + 1], a[f], b[2], b[3]);
                }
            }
        }
    }

#pragma unroll
    for (u32 f = 0; f < FRAGMENTS; f++) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            float total = totals[f][i];
            total += __shfl_xor_sync(ALL_LANES, total, 1);
            total += __shfl_xor_sync(ALL_LANES, total, 2);
            const u32 row = own_row + f * 16 + i * 8 + g;
            if (row >= rows) continue;
            const float factor = 1.0f / total;
            const u32 token = first_token + row / group, head = kv_head * group + row % group;
            u16* own = out + ((u64)token * heads + head) * width + t * 2;
#pragma unroll
            for (u32 j = 0; j < width / 8; j++)
                *(u32*)(own + j * 8) = pack_bf16(mixed[f][j][2 * i] * factor, mixed[f][j][2 * i + 1] * factor);
        }
    }
}

KERNEL(prefill_attention_64, 128, 2, const u16* qkv, u32 stride, const u16* keys, const u16* values, const u32* tables,
       u32 table_stride, const u32* tiles, float scale, u32 window, u32 heads, u32 kv_heads, u32 width, u16* out) {
    DYNAMIC_SHARED(shared);
    attend<64>(qkv, stride, keys, values, tables, table_stride, tiles, scale, window, heads, kv_heads, out, (u16*)shared);
}

KERNEL(prefill_attention_128, 128, 2, const u16* qkv, u32 stride, const u16* keys, const u16* values, const u32* tables,
       u32 table_stride, const u32* tiles, float scale, u32 window, u32 heads, u32 kv_heads, u32 width, u16* out) {
    DYNAMIC_SHARED(shared);
    attend<128>(qkv, stride, keys, values, tables, table_stride, tiles, scale, window, heads, kv_heads, out, (u16*)shared);
}
