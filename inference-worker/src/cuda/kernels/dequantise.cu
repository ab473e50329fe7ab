// Blocks of GGUF files to bf16, at load time. Rows are whole numbers of blocks, so a matrix is one list of blocks.
//
// Q8_0: 34 bytes make 32 weights; Q4_K: 144 bytes make 256. blocks: as in the file, out [blocks, weights of a block].
// Grid (ceil(count / 8)), block 256: a warp to a block. `count` is the number of blocks.
// A file is read from disk far slower than this runs, so bytes are read one by one.

__device__ __forceinline__ float from_half(const u8* at) {
    const u32 bits = at[0] | (u32)at[1] << 8;
    const u32 exponent = bits >> 10 & 31, fraction = bits & 1023, sign = (bits & 0x8000) << 16;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
    if (exponent > 0) return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
    // What is below the smallest normal number counts in steps of 2^-24.
    const float small = (float)fraction * 5.9604644775390625e-8f;
    return sign ? -small : small;
}

KERNEL(dequantise_q8_0, 256, 1, const u8* blocks, u16* out, u32 count) {
    const u64 block = (u64)blockIdx.x * 8 + threadIdx.x / WARP;
    if (block >= count) return;
    const u32 lane = threadIdx.x % WARP;
    const u8* bytes = blocks + block * 34;
    out[block * 32 + lane] = to_bf16(from_half(bytes) * (float)(signed char)bytes[2 + lane]);
}

KERNEL(dequantise_q4_k, 256, 1, const u8* blocks, u16* out, u32 count) {
    const u64 block = (u64)blockIdx.x * 8 + threadIdx.x / WARP;
    if (block >= count) return;
    const u32 lane = threadIdx.x % WARP;
    const u8* bytes = blocks + block * 144;
    const float scale = from_half(bytes), minimum = from_half(bytes + 2);
    const u8* packed = bytes + 4;
    for (u32 group = 0; group < 8; group++) {
        // Six bits each: the first four groups' lie alone, the others' four low bits together and two high bits apart.
        u32 own_scale, own_minimum;
        if (group < 4) {
            own_scale = packed[group] & 63;
            own_minimum = packed[group + 4] & 63;
        } else {
            own_scale = (packed[group + 4] & 15) | packed[group - 4] >> 6 << 4;
            own_minimum = packed[group + 4] >> 4 | packed[group] >> 6 << 4;
        }
        const u32 nibble = bytes[16 + group / 2 * 32 + lane] >> group % 2 * 4 & 15;
        // Both products are exact (11, 6 and 4 bits), so only their difference is rounded, and then to bf16.
        const float value = scale * (float)own_scale * (float)nibble;
        out[block * 256 + group * 32 + lane] = to_bf16(value - minimum * (float)own_minimum);
    }
}
