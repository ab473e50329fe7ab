// out[token, n] = sum over k of in[token, k] * weight[n, k]: what cuBLASLt computes where it is there.
//
// in [count, inputs] bf16, weight [outputs, inputs] bf16, out [count, outputs].
// Grid (ceil(outputs / 32), ceil(count / 32)), block 256.
KERNEL(product_bf16, 256, 1, const u16* in, const u16* weight, u16* out, u32 count, u32 inputs, u32 outputs);
KERNEL(product_f32, 256, 1, const u16* in, const u16* weight, float* out, u32 count, u32 inputs, u32 outputs);
