// What the host's compiler needs to take the kernels as they are: CUDA's words, played by fibers.
//
// Every thread of a block is a fiber that runs until it meets others: at a barrier, or where the lanes of a warp exchange
// values. So a kernel runs as on a device, only slowly, and stricter: shared memory starts as NaN, asynchronous copies
// arrive no earlier than they are waited for, all lanes must meet in the same exchange, and no thread may leave while
// others wait. What runs first between two meetings is up to `emulated_order`; results must not depend on it.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <utility>

#define VLINDERS_EMULATED
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __align__(bytes)
// All of shared memory lies in one section, so that it can be filled before each block.
#define __shared__ static __attribute__((section("vlinders_shared"), aligned(16)))
#define DYNAMIC_SHARED(name) unsigned char* const name = emulated::dynamic_shared
// Static, so that no library's function of the same name is called in its place.
#define KERNEL(name, threads, blocks, ...)                                      \
    static void name(__VA_ARGS__);                                              \
    static emulated::Entry entry_of_##name(#name, threads, &emulated::call<name>); \
    static void name(__VA_ARGS__)

struct uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

namespace emulated {

struct Index {
    unsigned x, y, z;
};

extern Index thread_index, block_index, block_size, grid_size;
extern unsigned char* dynamic_shared;

// A kernel by its name; `start` unpacks the arguments as a launch packs them, a pointer to each.
struct Entry {
    const char* name;
    unsigned threads;
    void (*start)(void** arguments);
    Entry* next;
    Entry(const char* name, unsigned threads, void (*start)(void**));
};

template <class... Parameters, size_t... At>
void call_with(void (*kernel)(Parameters...), void** arguments, std::index_sequence<At...>) {
    kernel(*static_cast<std::remove_reference_t<Parameters>*>(arguments[At])...);
}

template <class... Parameters>
void unpack(void (*kernel)(Parameters...), void** arguments) {
    call_with(kernel, arguments, std::index_sequence_for<Parameters...>());
}

template <auto kernel>
void call(void** arguments) {
    unpack(kernel, arguments);
}

// What the lanes of a warp can meet in.
enum class Meeting { synchronise, shuffle, vote, multiply, load_matrix, transpose };

// Leaves `bytes` of this lane's for the others of its warp, and returns those of all 32, 64 bytes apart.
const unsigned char* exchange(Meeting meeting, const void* mine, size_t bytes);

void barrier();
void copy_later(void* to, const void* from, size_t bytes, size_t zeros);
void commit_copies();
void await_copies(unsigned groups_left);
[[noreturn]] void fail(const char* what);

inline unsigned lane() { return thread_index.x % 32; }

template <class Value>
Value shuffle(Value mine, unsigned from) {
    const unsigned char* all = exchange(Meeting::shuffle, &mine, sizeof mine);
    Value theirs;
    memcpy(&theirs, all + from % 32 * 64, sizeof theirs);
    return theirs;
}

}  // namespace emulated

#define threadIdx emulated::thread_index
#define blockIdx emulated::block_index
#define blockDim emulated::block_size
#define gridDim emulated::grid_size

inline void __syncthreads() { emulated::barrier(); }
inline void __syncwarp() { emulated::exchange(emulated::Meeting::synchronise, nullptr, 0); }

inline void all_lanes(unsigned mask) {
    if (mask != 0xffffffffu) emulated::fail("an exchange of some lanes only");
}
template <class Value>
Value __shfl_sync(unsigned mask, Value mine, unsigned from) {
    all_lanes(mask);
    return emulated::shuffle(mine, from);
}
template <class Value>
Value __shfl_xor_sync(unsigned mask, Value mine, unsigned with) {
    all_lanes(mask);
    return emulated::shuffle(mine, emulated::lane() ^ with);
}
template <class Value>
Value __shfl_up_sync(unsigned mask, Value mine, unsigned by) {
    all_lanes(mask);
    return emulated::shuffle(mine, emulated::lane() < by ? emulated::lane() : emulated::lane() - by);
}
inline unsigned __ballot_sync(unsigned mask, int mine) {
    all_lanes(mask);
    const unsigned char* all = emulated::exchange(emulated::Meeting::vote, &mine, sizeof mine);
    unsigned votes = 0;
    for (unsigned lane = 0; lane < 32; lane++) {
        int theirs;
        memcpy(&theirs, all + lane * 64, sizeof theirs);
        votes |= unsigned(theirs != 0) << lane;
    }
    return votes;
}
inline int __any_sync(unsigned mask, int mine) { return __ballot_sync(mask, mine) != 0; }

// Fibers change only where they meet, so plain additions are atomic.
inline unsigned atomicAdd(unsigned* at, unsigned value) {
    const unsigned old = *at;
    *at = old + value;
    return old;
}

inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const uint64_t both = uint64_t(high) << 32 | low;
    unsigned out = 0;
    for (unsigned at = 0; at < 4; at++) out |= unsigned(both >> (selector >> 4 * at & 7) * 8 & 0xff) << 8 * at;
    return out;
}
inline float rsqrtf(float value) { return 1.0f / sqrtf(value); }
template <class Value>
Value min(Value a, Value b) {
    return b < a ? b : a;
}
template <class Value>
Value max(Value a, Value b) {
    return a < b ? b : a;
}

// The functions of `device.cuh` that are instructions there.

inline unsigned short rounded(float value) {
    const unsigned bits = __float_as_uint(value);
    if (value != value) return 0x7fff;
    return (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float widened(unsigned bits) { return __uint_as_float(bits << 16); }

inline unsigned pack_bf16(float low, float high) { return rounded(low) | unsigned(rounded(high)) << 16; }
inline float exp2_fast(float x) { return exp2f(x); }

inline uint4 load_once(const void* from) {
    uint4 value;
    memcpy(&value, from, sizeof value);
    return value;
}

inline void multiply_tile(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const unsigned mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    const unsigned char* all = emulated::exchange(emulated::Meeting::multiply, mine, sizeof mine);
    const auto word = [all](unsigned lane, unsigned at) {
        unsigned value;
        memcpy(&value, all + lane * 64 + at * 4, sizeof value);
        return value;
    };
    const unsigned group = emulated::lane() / 4, third = emulated::lane() % 4;
    for (unsigned at = 0; at < 4; at++) {
        const unsigned upper = at / 2, column = third * 2 + at % 2;
        double sum = 0;
        for (unsigned k = 0; k < 16; k++) {
            const unsigned owner = k % 8 / 2, half = k / 8, shift = k % 2 * 16;
            const unsigned left = word(group * 4 + owner, half * 2 + upper) >> shift & 0xffff;
            const unsigned right = word(column * 4 + owner, 4 + half) >> shift & 0xffff;
            sum += double(widened(left)) * double(widened(right));
        }
        sums[at] = float(sums[at] + sum);
    }
}

// Pairs of values of four 8x8 matrices, of which each lane names one row.
inline void load_matrices(unsigned (&out)[4], const void* row, bool transposed) {
    const unsigned char* all = emulated::exchange(emulated::Meeting::load_matrix, &row, sizeof row);
    const unsigned group = emulated::lane() / 4, pair = emulated::lane() % 4 * 2;
    for (unsigned matrix = 0; matrix < 4; matrix++) {
        const auto value = [all, matrix](unsigned row, unsigned column) {
            const unsigned short* values;
            memcpy(&values, all + (matrix * 8 + row) * 64, sizeof values);
            if (uintptr_t(values) % 16 != 0) emulated::fail("a row of a matrix is not aligned to 16 bytes");
            return unsigned(values[column]);
        };
        out[matrix] = transposed ? value(pair, group) | value(pair + 1, group) << 16
                                 : value(group, pair) | value(group, pair + 1) << 16;
    }
    // No lane goes on to overwrite the rows before all have read them.
    __syncwarp();
}
inline void load_rows(unsigned (&out)[4], const void* row) { load_matrices(out, row, false); }
inline void load_columns(unsigned (&out)[4], const void* row) { load_matrices(out, row, true); }

inline unsigned transpose(unsigned pair) {
    const unsigned char* all = emulated::exchange(emulated::Meeting::transpose, &pair, sizeof pair);
    const unsigned group = emulated::lane() / 4, first = emulated::lane() % 4 * 2;
    const auto value = [all](unsigned row, unsigned column) {
        unsigned word;
        memcpy(&word, all + (row * 4 + column / 2) * 64, sizeof word);
        return word >> column % 2 * 16 & 0xffff;
    };
    return value(first, group) | value(first + 1, group) << 16;
}

inline void copy_async(void* to, const void* from, bool there) { emulated::copy_later(to, from, there ? 16 : 0, there ? 0 : 16); }
inline void commit_async() { emulated::commit_copies(); }
template <unsigned groups_left>
inline void await_async() {
    emulated::await_copies(groups_left);
}
