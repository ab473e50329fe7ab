// RMS norms of the residual stream. Grid (rows), block 256: one block to a row.

// out[row] = bf16(x[source] / rms(x[source]) * weight), where source is rows[row], or row when `rows` is null.
//
// x [*, hidden] f32, rows [rows] (optional), weight [hidden] f32, out [rows, hidden] bf16.
KERNEL(rms_norm, 256, 1, const float* x, const u32* rows, const float* weight, float epsilon, u16* out, u32 hidden);

// x[source] += projected[source] + bias, then out[row] as above: the end of one half of a layer and the start of the next.
// For the last norm `rows` lists the rows whose logits are wanted, each at most once; the others stay as they were.
//
// x [*, hidden] f32, projected [*, hidden] bf16, bias [hidden] f32 (optional).
KERNEL(add_rms_norm, 256, 1, float* x, const u16* projected, const float* bias, const u32* rows, const float* weight,
       float epsilon, u16* out, u32 hidden);
