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
// uses each fragment of keys or values that it reads from shared memory twice. Two blocks fit an SM (64 KiB and 255
// registers each): eight warps, two on each scheduler; while one waits at a barrier or weighs, the other multiplies.
// For 64 positions at a width of 128, in clocks of an SM:
// - products: 8 warps x 1 MFLOP / some 2500 flops that mma.sync does in a clock: 3300;
// - shared memory: 8 warps x 40 KiB (8 of queries, 16 of keys, 16 of values) / 128 bytes: 2600;
// - instructions: 2 warps x some 900: 1800 on each scheduler.
// So the tensor cores are the bound. From L2 come 32 KiB for 128 rows, 128 flops a byte: 2.3 TB/s at 300 TFLOP/s, less than
// half of what it gives.
// Copies are asynchronous: values arrive while scores are computed, the next keys while weights and sums are.
//
// Rows of shared memory are `width` values long without padding; the place of 16 bytes within a row is exclusive-ored
// with the row's number modulo 8, so that the eight rows of a matrix lie in different banks.

#define LOG2_E 1.4426950408889634f
// How much a score may exceed the scale of the sums before they are scaled anew, in powers of two; see decode attention.
#define SLACK 8.0f
#define ROWS 128
#define WARPS 4
// Fragments of 16 rows of a warp.
#define FRAGMENTS 2
#define POSITIONS 64

// Where eight values of a row lie.
template <u32 width>
__device__ __forceinline__ u32 place(u32 row, u32 eight) {
    return row * width + (eight ^ row % 8) * 8;
}

// Asks for 64 positions from `start` of the keys or the values of a head; zeros from position `end` on, so that weights
// of 0 meet numbers. `start` is a multiple of 16.
//
// A thread copies the same eight dimensions of every 8th or 16th position: so its place within a block of the cache, and
// within a row of shared memory, is the same each time, and only the four blocks have to be looked up.
template <u32 width>
__device__ __forceinline__ void fetch(u16* matrix, const u16* cache, const u32* table, u32 block_stride, u32 start, u32 end) {
    const u32 eights = width / 8, rows = WARPS * WARP / eights;
    const u32 row = threadIdx.x / eights, eight = threadIdx.x % eights;
    u16* to = matrix + place<width>(row, eight);
    const u16* from = cache + row * width + eight * 8;
#pragma unroll
    for (u32 block = 0; block < POSITIONS / BLOCK; block++) {
        const u32 first = start + block * BLOCK;
        const u16* own = from + (u64)(first < end ? table[first / BLOCK] : 0) * block_stride;
#pragma unroll
        for (u32 within = 0; within < BLOCK; within += rows)
            copy_async(to + (block * BLOCK + within) * width, own + within * width, first + within + row < end);
    }
    commit_async();
}

template <u32 width>
__device__ __forceinline__ void attend(const u16* qkv, u32 stride, const u16* keys, const u16* values, const u32* tables,
                                       u32 table_stride, const u32* tiles, float scale, u32 window, u32 heads, u32 kv_heads,
                                       u16* out, u16* shared, u32* positions) {
    u16* const own_queries = shared;
    u16* const own_keys = own_queries + ROWS * width;
    u16* const own_values = own_keys + POSITIONS * width;
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const u32 group = heads / kv_heads, kv_head = blockIdx.y;
    const u32* tile = tiles + blockIdx.x * 4;
    const u32 first_token = tile[1], tokens = tile[2], first_position = tile[3];
    if (tokens == 0) return;
    const u32* table = tables + (u64)tile[0] * table_stride;
    const u32 block_stride = kv_heads * BLOCK * width;
    keys += (u64)kv_head * BLOCK * width;
    values += (u64)kv_head * BLOCK * width;
    const u32 rows = tokens * group, end = first_position + tokens;
    const u32 from = window > 0 && first_position + 1 > window ? first_position + 1 - window : 0;

    {
        const u32 eights = width / 8;
#pragma unroll 4
        for (u32 row = threadIdx.x / eights; row < ROWS; row += WARPS * WARP / eights) {
            const u32 eight = threadIdx.x % eights;
            const u32 token = first_token + row / group, head = kv_head * group + row % group;
            const u16* source = qkv;
            if (row < rows) source += (u64)token * stride + head * width + eight * 8;
            copy_async(own_queries + place<width>(row, eight), source, row < rows);
        }
        commit_async();
    }
    // Whole blocks of the cache, so that a block is looked up for 16 neighbouring rows.
    u32 start = from / BLOCK * BLOCK;
    fetch<width>(own_keys, keys, table, block_stride, start, end);

    // The position of each row, wanted at borders only, and so not kept in registers; and the bounds of what the warp sees.
    positions[threadIdx.x] = first_position + threadIdx.x / group;
    const u32 own_row = warp * (FRAGMENTS * 16);
    const u32 earliest = first_position + own_row / group, latest = first_position + (own_row + FRAGMENTS * 16 - 1) / group;
    const bool idle = own_row >= rows;

    float mixed[FRAGMENTS][width / 8][4];
    // The sums of weights are those of their rounded values, so that a weight which outdoes all others divides by itself:
    // a product with ones, whose columns are all the same.
    float largest[FRAGMENTS][2], totals[FRAGMENTS][4];
#pragma unroll
    for (u32 f = 0; f < FRAGMENTS; f++) {
        largest[f][0] = largest[f][1] = LOWEST;
        totals[f][0] = totals[f][1] = totals[f][2] = totals[f][3] = 0.0f;
#pragma unroll
        for (u32 j = 0; j < width / 8; j++) mixed[f][j][0] = mixed[f][j][1] = mixed[f][j][2] = mixed[f][j][3] = 0.0f;
    }
    const float scale2 = scale * LOG2_E;
    // The row that a lane names when four matrices of eight rows are read, in their order: queries and values as two above
    // each other and two beside them, keys as two beside each other and two below. `place` of another `eight` that differs
    // by an even number is an exclusive or away.
    const u32 matrix = lane / 8, line = lane % 8;
    const u32 query_place = place<width>(own_row + matrix % 2 * 8 + line, matrix / 2);
    const u32 key_place = place<width>(matrix / 2 * 8 + line, matrix % 2);
    const u32 value_place = place<width>(matrix % 2 * 8 + line, matrix / 2);

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
                    load_rows(a[f], own_queries + (query_place ^ step * 16) + f * 16 * width);
#pragma unroll
                for (u32 j = 0; j < POSITIONS / 8; j += 2) {
                    u32 b[4];
                    load_rows(b, own_keys + (key_place ^ step * 16) + j * 8 * width);
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
                const u32 owns[2] = {positions[own_row + f * 16 + g], positions[own_row + f * 16 + 8 + g]};
#pragma unroll
                for (u32 j = 0; j < POSITIONS / 8; j++) {
#pragma unroll
                    for (u32 i = 0; i < 4; i++) {
                        const u32 position = start + j * 8 + t * 2 + i % 2, own = owns[i / 2];
                        if (position > own || (window > 0 && position + window <= own)) scores[f][j][i] = LOWEST;
                    }
                }
            }
            float most[2];
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                most[i] = LOWEST;
#pragma unroll
                for (u32 j = 0; j < POSITIONS / 8; j++)
                    most[i] = fmaxf(most[i], fmaxf(scores[f][j][2 * i], scores[f][j][2 * i + 1]));
                most[i] *= scale2;
            }
            if (__any_sync(ALL_LANES, most[0] > largest[f][0] + SLACK || most[1] > largest[f][1] + SLACK)) {
#pragma unroll
                for (u32 i = 0; i < 2; i++) {
                    most[i] = fmaxf(most[i], __shfl_xor_sync(ALL_LANES, most[i], 1));
                    most[i] = fmaxf(most[i], __shfl_xor_sync(ALL_LANES, most[i], 2));
                    most[i] = fmaxf(most[i], largest[f][i]);
                    // A row that has seen nothing yet keeps sums of 0 under any scale.
                    const float factor = most[i] == LOWEST ? 1.0f : exp2_fast(largest[f][i] - most[i]);
                    largest[f][i] = most[i];
                    totals[f][2 * i] *= factor;
#pragma unroll
                    for (u32 j = 0; j < width / 8; j++) mixed[f][j][2 * i] *= factor, mixed[f][j][2 * i + 1] *= factor;
                }
            }
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                const float base = largest[f][i] == LOWEST ? 0.0f : largest[f][i];
#pragma unroll
                for (u32 j = 0; j < POSITIONS / 8; j++) {
#pragma unroll
                    for (u32 k = 2 * i; k < 2 * i + 2; k++) scores[f][j][k] = exp2_fast(fmaf(scores[f][j][k], scale2, -base));
                }
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
                multiply_tile(totals[f], a[f], ONES, ONES);
            }
#pragma unroll
            for (u32 j = 0; j < width / 8; j += 2) {
                u32 b[4];
                load_columns(b, own_values + (value_place ^ j * 8) + step * 16 * width);
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
            const u32 row = own_row + f * 16 + i * 8 + g;
            if (row >= rows) continue;
            const float factor = 1.0f / totals[f][2 * i];
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
    __shared__ u32 positions[ROWS];
    attend<64>(qkv, stride, keys, values, tables, table_stride, tiles, scale, window, heads, kv_heads, out, (u16*)shared,
               positions);
}

KERNEL(prefill_attention_128, 128, 2, const u16* qkv, u32 stride, const u16* keys, const u16* values, const u32* tables,
       u32 table_stride, const u32* tiles, float scale, u32 window, u32 heads, u32 kv_heads, u32 width, u16* out) {
    DYNAMIC_SHARED(shared);
    __shared__ u32 positions[ROWS];
    attend<128>(qkv, stride, keys, values, tables, table_stride, tiles, scale, window, heads, kv_heads, out, (u16*)shared,
                positions);
}
