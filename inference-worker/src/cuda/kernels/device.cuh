// What every kernel needs and no header gives: the sources include nothing, so that NVRTC compiles them wherever a driver
// is. This text stands before each of them.
//
// The same text is compiled for the host, with VLINDERS_EMULATED and the definitions of `tests/cuda/emulation.h` before
// it: there the few functions below that are not C++ are played by fibers, one for each thread of a block.
//
// Conventions of all kernels:
// - bf16 travels as `unsigned short`; sums are in f32.
// - Matrices are row-major; "[a, b]" names the outer dimension first. Widths (hidden, intermediate, head width) are
//   multiples of 8 and pointers are aligned to 16 bytes, so that every row can be read 16 bytes at a time.
// - A pointer that is said to be optional may be null.
// - `NONE` marks what is not there: a slot, a row, a token.
// - The block is one-dimensional and as long as the second argument of `KERNEL`.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define NONE 0xffffffffu
#define WARP 32
// Positions in one block of the cache, as in `kv.rs`.
#define BLOCK 16
// Two ones in bf16.
#define ONES 0x3f803f80u
#define LOWEST __uint_as_float(0xff800000u)

#ifndef VLINDERS_EMULATED
// An entry point: its name, the threads of a block, how many blocks shall fit an SM, and its parameters.
#define KERNEL(name, threads, blocks, ...) extern "C" __global__ void __launch_bounds__(threads, blocks) name(__VA_ARGS__)
#endif

#ifndef VLINDERS_EMULATED
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

// Two values rounded to nearest even, `low` in the low half.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// 2^x to within two units in the last place; exactly 0 for minus infinity.
__device__ __forceinline__ float exp2_fast(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

// 16 bytes that are read once and by nobody else soon, so that they push nothing out of L1. Volatile, so that loads stay
// where they are written: ahead of the work that hides them.
__device__ __forceinline__ uint4 load_once(const void* from) {
    uint4 value;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(from));
    return value;
}

// sums += a * b for tiles of 16x16 and 16x8 on the tensor cores. With lane = 4 * g + t a lane holds of `a` rows g and
// g + 8: {(g, 2t..), (g + 8, 2t..), (g, 2t + 8..), (g + 8, 2t + 8..)}; of `b` column g: rows 2t.. and 2t + 8..; and of
// the sums {(g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)}.
__device__ __forceinline__ void multiply_tile(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8x8 matrices from shared memory: lanes 8i to 8i + 7 name the rows of matrix i, and a lane gets of each matrix
// (g, 2t) and (g, 2t + 1).
__device__ __forceinline__ void load_rows(u32 (&out)[4], const void* row) {
    const u32 at = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(at)
                 : "memory");
}

// The same, transposed: a lane gets (2t, g) and (2t + 1, g).
__device__ __forceinline__ void load_columns(u32 (&out)[4], const void* row) {
    const u32 at = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(at)
                 : "memory");
}

// Transposes an 8x8 matrix of which each lane holds (g, 2t) and (g, 2t + 1).
__device__ __forceinline__ u32 transpose(u32 pair) {
    u32 out;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pair));
    return out;
}

// Copies 16 bytes to shared memory, or zeros where nothing is there; `from` must be an address all the same.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool there) {
    const u32 at = (u32)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(there ? 16 : 0) : "memory");
}
__device__ __forceinline__ void commit_async() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for all but the last groups of this thread.
template <u32 groups_left>
__device__ __forceinline__ void await_async() {
    asm volatile("cp.async.wait_group %0;" ::"n"(groups_left) : "memory");
}
#endif

#define ALL_LANES 0xffffffffu

__device__ __forceinline__ float low_bf16(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_bf16(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ __forceinline__ float from_bf16(u16 value) { return __uint_as_float((u32)value << 16); }
__device__ __forceinline__ u16 to_bf16(float value) { return (u16)pack_bf16(value, 0.0f); }

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (u32 apart = WARP / 2; apart > 0; apart /= 2) value += __shfl_xor_sync(ALL_LANES, value, apart);
    return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (u32 apart = WARP / 2; apart > 0; apart /= 2) value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, apart));
    return value;
}

// The sum over a block of `warps` warps, for every thread; `room` holds a float for each warp. The order of additions is
// fixed. All threads come here; `room` may be used again after the next barrier.
template <u32 warps>
__device__ __forceinline__ float block_sum(float value, float* room) {
    value = warp_sum(value);
    if (threadIdx.x % WARP == 0) room[threadIdx.x / WARP] = value;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (u32 warp = 0; warp < warps; warp++) sum += room[warp];
    return sum;
}

// The positions a context of `positions` positions looks at: from..positions, in blocks first..last of its table, cut into
// splits.
struct Splits {
    u32 from;
    u32 first;
    u32 last;
    u32 blocks_per_split;
    u32 used;
};

// See `decode_attention.cu`. Rounded to whole rounds of the four warps of a block of threads.
__device__ __forceinline__ Splits cut(u32 positions, u32 window, u32 blocks_least, u32 splits) {
    Splits s;
    s.from = window > 0 && positions > window ? positions - window : 0;
    s.first = s.from / BLOCK;
    s.last = (positions + BLOCK - 1) / BLOCK;
    const u32 blocks = s.last - s.first;
    s.blocks_per_split = (max(max(blocks_least, 1u), (blocks + splits - 1) / splits) + 3) / 4 * 4;
    s.used = (blocks + s.blocks_per_split - 1) / s.blocks_per_split;
    return s;
}
