// Between the projection and attention: bias, norm of each head, rotation, and the way into the cache.
//
// qkv [count, (heads + 2 * kv_heads) * width] bf16: queries, keys, values of a token; the queries are written back, keys
// and values are left as they were. bias [(heads + 2 * kv_heads) * width] f32 (optional), query_norm and key_norm [width]
// f32 (optional, each), inverse_frequencies [width / 2] f32. positions [count]; slots [count]: block * 16 + position % 16,
// or NONE to store nothing. keys and values [blocks, kv_heads, 16, width] bf16, of one layer.
// Rounded to bf16 once, at the end. Width is at most 256.
// Grid (count, ceil((heads + 2 * kv_heads) / 4)), block 128: a warp to a head.
KERNEL(rotate_and_store, 128, 1, u16* qkv, const float* bias, const float* query_norm, const float* key_norm,
       float epsilon, const float* inverse_frequencies, float amplitude, const u32* positions, const u32* slots, u16* keys,
       u16* values, u32 heads, u32 kv_heads, u32 width);
