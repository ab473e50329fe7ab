// The inputs that the step before has picked: inputs[token] = picked[sources[token]]. A token without a source (NONE) keeps
// the input it has.
//
// picked [*], sources and inputs [count]. Grid (ceil(count / 128)), block 128.
KERNEL(feed, 128, 1, const u32* picked, const u32* sources, u32* inputs, u32 count) {
    const u32 token = blockIdx.x * 128 + threadIdx.x;
    if (token < count && sources[token] != NONE) inputs[token] = picked[sources[token]];
}
