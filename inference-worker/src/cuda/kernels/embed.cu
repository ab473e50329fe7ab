// x[token] = table[tokens[token]]: the start of the residual stream.
//
// table [vocabulary, hidden] bf16, tokens [count], x [count, hidden] f32. A token outside the vocabulary gives zeros.
// Grid (count), block 256.
KERNEL(embed, 256, 1, const u16* table, const u32* tokens, float* x, u32 vocabulary, u32 hidden) {
    const u32 token = tokens[blockIdx.x];
    const u16* row = table + (u64)token * hidden;
    float* out = x + (u64)blockIdx.x * hidden;
    for (u32 at = threadIdx.x * 8; at < hidden; at += 256 * 8) {
        uint4 values = {0, 0, 0, 0};
        if (token < vocabulary) values = *(const uint4*)(row + at);
        float4 first, second;
        first.x = low_bf16(values.x), first.y = high_bf16(values.x), first.z = low_bf16(values.y), first.w = high_bf16(values.y);
        second.x = low_bf16(values.z), second.y = high_bf16(values.z), second.z = low_bf16(values.w);
        second.w = high_bf16(values.w);
        *(float4*)(out + at) = first;
        *(float4*)(out + at + 4) = second;
    }
}
