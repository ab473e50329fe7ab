// Attention of one token of each sequence over the paged cache, and the merge of its splits.
//
// qkv [sequences, stride] bf16: the rotated queries of each token stand first in its row, [heads, width]. keys and values
// [blocks, kv_heads, 16, width] bf16, of one layer. tables [sequences, table_stride]. contexts [sequences]: the positions
// stored, the token's own with them; 0 for a row that is not in use, which gives zeros. A token sees the last `window`
// positions, its own with them; 0 for all. scale is 1 / sqrt(width).
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
// A good number of splits: clamp(ceil(396 / (gridDim.x * sequences)), 1, 64) with blocks_least = 8; 396 blocks fill
// an H200 (132 SMs of 3 blocks each).
KERNEL(decode_attention_64, 128, 3, const u16* qkv, u32 stride, const u16* keys, const u16* values, const u32* tables,
       u32 table_stride, const u32* contexts, float scale, u32 window, u32 heads, u32 kv_heads, u32 width, u32 blocks_least,
       float* parts, float* sums, u16* out);
KERNEL(decode_attention_128, 128, 3, const u16* qkv, u32 stride, const u16* keys, const u16* values, const u32* tables,
       u32 table_stride, const u32* contexts, float scale, u32 window, u32 heads, u32 kv_heads, u32 width, u32 blocks_least,
       float* parts, float* sums, u16* out);
// The same for every other width up to 256: plain, and slower.
KERNEL(decode_attention_any, 128, 1, const u16* qkv, u32 stride, const u16* keys, const u16* values, const u32* tables,
       u32 table_stride, const u32* contexts, float scale, u32 window, u32 heads, u32 kv_heads, u32 width, u32 blocks_least,
       float* parts, float* sums, u16* out);

// Grid (heads, sequences), block 128.
KERNEL(merge_splits, 128, 1, const float* parts, const float* sums, const u32* contexts, u32 window, u32 heads, u32 width,
       u32 blocks_least, u32 splits, u16* out);
