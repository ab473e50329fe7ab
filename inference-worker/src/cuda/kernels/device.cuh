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
#define LOWEST (-__builtin_huge_valf())

#ifndef VLINDERS_EMULATED
// An entry point: its name, the threads of a block, how many blocks shall fit an SM, and its parameters.
#define KERNEL(name, threads, blocks, ...) extern "C" __global__ void __launch_bounds__(threads, blocks) name(__VA_ARGS__)
#endif
