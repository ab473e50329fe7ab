// Causal attention of runs of tokens over the paged cache, in which their own keys and values already stand.
//
// qkv, stride, keys, values, tables, table_stride, scale, window, heads, kv_heads, width and out as in decode attention,
// with a row of qkv and of out for each token of the batch: out [count, heads, width] bf16.
// tiles [gridDim.x, 4]: sequence (row of tables), first token (row of qkv), tokens, position of the first token. The host
// cuts each run of neighbouring tokens of one sequence into tiles of at most 128 / (heads / kv_heads) tokens, and lists
// those with the longest contexts first. Rows that no tile names are left as they were. A tile of 0 tokens does nothing.
//
// Grid (tiles, kv_heads), block 256. heads / kv_heads is at most 128.
// Shared memory: static, except for _128, which wants 64 KiB of dynamic shared memory, and _64, which wants 32 KiB.
KERNEL(prefill_attention_64, 256, 1, const u16* qkv, u32 stride, const u16* keys, const u16* values, const u32* tables,
       u32 table_stride, const u32* tiles, float scale, u32 window, u32 heads, u32 kv_heads, u32 width, u16* out);
KERNEL(prefill_attention_128, 256, 1, const u16* qkv, u32 stride, const u16* keys, const u16* values, const u32* tables,
       u32 table_stride, const u32* tiles, float scale, u32 window, u32 heads, u32 kv_heads, u32 width, u16* out);
// The same for every other width up to 256: plain, and slower.
KERNEL(prefill_attention_any, 256, 1, const u16* qkv, u32 stride, const u16* keys, const u16* values, const u32* tables,
       u32 table_stride, const u32* tiles, float scale, u32 window, u32 heads, u32 kv_heads, u32 width, u16* out);
