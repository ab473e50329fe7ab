// x[token] = table[tokens[token]]: the start of the residual stream.
//
// table [vocabulary, hidden] bf16, tokens [count], x [count, hidden] f32. A token outside the vocabulary gives zeros.
// Grid (count), block 256.
KERNEL(embed, 256, 1, const u16* table, const u32* tokens, float* x, u32 vocabulary, u32 hidden);
