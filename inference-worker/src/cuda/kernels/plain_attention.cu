// Attention for heads of other widths than 64 and 128: plain, slower, and nothing is asked of the width but that it is at
// most 256.

#define LOG2_E 1.4426950408889634f
// Values of a head a lane may hold.
#define HELD 8

// One query over positions from..end, by one warp: a lane scores one position of 32 at a time, then the lanes share the
// dimensions of the values. `mixed` receives the weighted sum at lane, lane + 32 and so on.
__device__ __forceinline__ void attend_alone(const u16* query, const u16* keys, const u16* values, const u32* table, u32 kv_head,
                                             u32 kv_heads, u32 width, u32 from, u32 end, float scale, float (&mixed)[HELD],
                                             float& largest, float& total) {
    const u32 lane = threadIdx.x % WARP;
    largest = LOWEST, total = 0.0f;
#pragma unroll
    for (u32 i = 0; i < HELD; i++) mixed[i] = 0.0f;
    for (u32 start = from; start < end; start += WARP) {
        const u32 own = start + lane;
        float score = LOWEST;
        u64 line = 0;
        if (own < end) {
            line = (((u64)table[own / BLOCK] * kv_heads + kv_head) * BLOCK + own % BLOCK) * width;
            float sum = 0.0f;
            for (u32 at = 0; at < width; at++) sum += from_bf16(query[at]) * from_bf16(keys[line + at]);
            score = sum * scale * LOG2_E;
        }
        const float most = fmaxf(warp_max(score), largest), factor = exp2_fast(largest - most);
        const float weight = exp2_fast(score - most);
        largest = most;
        total = total * factor + warp_sum(weight);
#pragma unroll
        for (u32 i = 0; i < HELD; i++) mixed[i] *= factor;
        const u32 there = min(end - start, (u32)WARP);
        for (u32 other = 0; other < there; other++) {
            const float its_weight = __shfl_sync(ALL_LANES, weight, other);
            const u64 its_line = __shfl_sync(ALL_LANES, line, other);
#pragma unroll
            for (u32 i = 0; i < HELD; i++) {
                const u32 at = lane + i * WARP;
                if (at < width) mixed[i] += its_weight * from_bf16(values[its_line + at]);
            }
        }
    }
}

// As `decode_attention_128`, with the same grid and block.
KERNEL(decode_attention_any, 128, 1, const u16* qkv, u32 stride, const u16* keys, const u16* values, const u32* tables,
       u32 table_stride, const u32* contexts, float scale, u32 window, u32 heads, u32 kv_heads, u32 width, u32 blocks_least,
       float* parts, float* sums, u16* out) {
    const u32 lane = threadIdx.x % WARP, group = heads / kv_heads, tiles = (group + 7) / 8;
    const u32 kv_head = blockIdx.x / tiles, tile = blockIdx.x % tiles * 8, queries = min(group - tile, 8u);
    const u32 sequence = blockIdx.z, split = blockIdx.y, positions = contexts[sequence];
    const Splits splits = cut(positions, window, blocks_least, gridDim.y);
    if (split >= max(splits.used, 1u)) return;
    const u32 first = (splits.first + split * splits.blocks_per_split) * BLOCK;
    const u32 from = max(first, splits.from), end = min(first + splits.blocks_per_split * BLOCK, positions);
    for (u32 q = threadIdx.x / WARP; q < queries; q += 4) {
        const u32 head = kv_head * group + tile + q;
        float mixed[HELD], largest, total;
        attend_alone(qkv + (u64)sequence * stride + head * width, keys, values, tables + (u64)sequence * table_stride, kv_head,
                     kv_heads, width, from, end, scale, mixed, largest, total);
        const u64 row = (u64)sequence * heads + head, part = row * gridDim.y + split;
#pragma unroll
        for (u32 i = 0; i < HELD; i++) {
            const u32 at = lane + i * WARP;
            if (at >= width) continue;
            if (splits.used <= 1) {
                out[row * width + at] = to_bf16(positions == 0 ? 0.0f : mixed[i] / total);
            } else {
                parts[part * width + at] = mixed[i];
            }
        }
        if (splits.used > 1 && lane == 0) sums[part * 2] = largest, sums[part * 2 + 1] = total;
    }
}

// As `prefill_attention_128`, with the same tiles, grid and block; no dynamic shared memory.
KERNEL(prefill_attention_any, 128, 1, const u16* qkv, u32 stride, const u16* keys, const u16* values, const u32* tables,
       u32 table_stride, const u32* tiles, float scale, u32 window, u32 heads, u32 kv_heads, u32 width, u16* out) {
    const u32 lane = threadIdx.x % WARP, group = heads / kv_heads, kv_head = blockIdx.y;
    const u32* tile = tiles + blockIdx.x * 4;
    for (u32 row = threadIdx.x / WARP; row < tile[2] * group; row += 4) {
        const u32 token = tile[1] + row / group, head = kv_head * group + row % group;
        const u32 end = tile[3] + row / group + 1, from = window > 0 && end > window ? end - window : 0;
        float mixed[HELD], largest, total;
        attend_alone(qkv + (u64)token * stride + head * width, keys, values, tables + (u64)tile[0] * table_stride, kv_head, kv_heads,
                     width, from, end, scale, mixed, largest, total);
#pragma unroll
        for (u32 i = 0; i < HELD; i++) {
            const u32 at = lane + i * WARP;
            if (at < width) out[((u64)token * heads + head) * width + at] = to_bf16(mixed[i] / total);
        }
    }
}
