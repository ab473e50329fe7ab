// Blocks of GGUF files to bf16, at load time. Rows are whole numbers of blocks, so a matrix is one list of blocks.
//
// Q8_0: 34 bytes make 32 weights; Q4_K: 144 bytes make 256. blocks: as in the file, out [blocks, weights of a block].
// Grid (ceil(count / 8)), block 256: a warp to a block. `count` is the number of blocks.
KERNEL(dequantise_q8_0, 256, 1, const u8* blocks, u16* out, u64 count);
KERNEL(dequantise_q4_k, 256, 1, const u8* blocks, u16* out, u64 count);
