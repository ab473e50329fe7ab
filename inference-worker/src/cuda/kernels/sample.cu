// The next token of each row of logits, as `Sampling::pick` picks it, and the step from it to the next input.
//
// `Sampling::pick` sorts the vocabulary by weight and then cuts: the top_k first, the fewest that reach top_p of what is
// left, those of at least min_p, and then walks to the token at which the running sum passes a random part of the total.
// Each of these cuts is a beginning of one and the same order (heavier first, ties to the lower id), so what is left after
// all of them is the shortest, and is known by its sum of weights alone. Nothing is sorted: a position in the order, by
// count or by sum of weights, is found as the digits of a weight's bits, from the highest down, by histograms of 1024 bins
// over the whole row. The first histogram serves all searches; each search reads the row twice more. A row of
// 152 k logits is 608 KB, which one SM reads from L2 in some 6 us: 1 reading for the likeliest token, 5 for a plain draw,
// 9 with top_k and top_p.
//
// Sums are integers in units of 2^-40 of the largest weight, so that they do not depend on the order of additions, and a
// draw is the same each time. They differ from the f32 sums of the host by rounding only.

#define THREADS 1024
// A weight is at most 1, so that the sign and the highest bit of its exponent are 0, and three digits of 10 bits name it.
#define BINS 1024
// The least weight that the first histogram counts: 2^-20.
#define LEAST 9.5367431640625e-7f

// How a row is sampled: 32 bytes, in this order. temperature 0 (or top_k 1) picks the likeliest.
struct Sampling {
    float temperature;
    u32 top_k;
    float top_p;
    float min_p;
    u64 seed;
    // Not used.
    u64 reserved;
};

// What a block shares. Sums of bins are in two words, since shared memory adds 32 bits at once: `carries` counts
// overflows of `sums`, and what does not fit it in the first place.
struct Room {
    u32 counts[2][BINS];
    u32 sums[2][BINS];
    u32 carries[2][BINS];
    u64 warps[THREADS / WARP];
    float values[THREADS / WARP];
    u32 ids[THREADS / WARP];
    // The bin that was found, and what lies before it.
    u32 bin;
    u32 count_before;
    u64 sum_before;
};

// A place in the order: the weight that stands there, what lies before all tokens of this weight, and how many they are.
struct Place {
    u32 bits;
    u32 count_before;
    u64 sum_before;
    u32 count;
};

__device__ __forceinline__ bool is_finite(float value) { return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u; }

// Calls `with(id, logit)` for all of a row that may be picked. Four logits at a time where rows are aligned.
template <class With>
__device__ __forceinline__ void for_each(const float* row, const u32* allowed, u32 vocabulary, const With& with) {
    const auto one = [&](u32 id, float logit) {
        if (is_finite(logit) && (!allowed || allowed[id / 32] >> id % 32 & 1)) with(id, logit);
    };
    if (vocabulary % 4 == 0) {
        // The next four are under way while these are looked at: with 1024 threads 32 KiB, what L2 gives an SM in its latency.
        u32 id = threadIdx.x * 4;
        float4 next = {0.0f, 0.0f, 0.0f, 0.0f};
        if (id < vocabulary) next = *(const float4*)(row + id);
#pragma unroll 1
        for (; id < vocabulary; id += THREADS * 4) {
            const float4 four = next;
            if (id + THREADS * 4 < vocabulary) next = *(const float4*)(row + id + THREADS * 4);
            one(id, four.x), one(id + 1, four.y), one(id + 2, four.z), one(id + 3, four.w);
        }
    } else {
#pragma unroll 1
        for (u32 id = threadIdx.x; id < vocabulary; id += THREADS) one(id, row[id]);
    }
}

// The likeliest token and its logit, for every thread; NONE if there is none. Zero of either sign is the same.
__device__ __forceinline__ u32 likeliest(const float* row, const u32* allowed, u32 vocabulary, Room& room, float& largest) {
    float best = LOWEST;
    u32 id = NONE;
    for_each(row, allowed, vocabulary, [&](u32 other, float logit) {
        if (logit > best || (logit == best && other < id)) best = logit, id = other;
    });
    const auto better = [&](float other_best, u32 other) {
        if (other_best > best || (other_best == best && other < id)) best = other_best, id = other;
    };
#pragma unroll
    for (u32 apart = WARP / 2; apart > 0; apart /= 2) {
        const float other_best = __shfl_xor_sync(ALL_LANES, best, apart);
        const u32 other = __shfl_xor_sync(ALL_LANES, id, apart);
        better(other_best, other);
    }
    if (threadIdx.x % WARP == 0) room.values[threadIdx.x / WARP] = best, room.ids[threadIdx.x / WARP] = id;
    __syncthreads();
#pragma unroll 4
    for (u32 warp = 0; warp < THREADS / WARP; warp++) better(room.values[warp], room.ids[warp]);
    largest = best;
    return id;
}

// A number in [0, 1): two rounds of splitmix64 over seed and position, as on the host.
__device__ __forceinline__ u64 mix(u64 z) {
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}
__device__ __forceinline__ float uniform(u64 seed, u32 position) {
    const u64 bits = mix(mix(seed + 0x9e3779b97f4a7c15ull) + position * 0x9e3779b97f4a7c15ull);
    return (float)(u32)(bits >> 40) / 16777216.0f;
}

struct Weights {
    const float* row;
    const u32* allowed;
    u32 vocabulary;
    float largest;
    float temperature;

    // Calls `with(id, weight)` for all tokens of some weight.
    template <class With>
    __device__ __forceinline__ void for_each(const With& with) const {
        ::for_each(row, allowed, vocabulary, [&](u32 id, float logit) {
            const float weight = expf((logit - largest) / temperature);
            if (weight > 0.0f) with(id, weight);
        });
    }
};

__device__ __forceinline__ u64 in_units(float weight) { return (u64)(weight * 1099511627776.0f + 0.5f); }

__device__ __forceinline__ void clear(Room& room, u32 level) {
    for (u32 bin = threadIdx.x; bin < BINS; bin += THREADS) room.counts[level][bin] = room.sums[level][bin] = room.carries[level][bin] = 0;
    __syncthreads();
}

__device__ __forceinline__ void add(Room& room, u32 level, u32 bin, u64 units, bool counts) {
    const u32 low = (u32)units;
    const u32 old = atomicAdd(&room.sums[level][bin], low);
    const u32 high = (u32)(units >> 32) + (old + low < old);
    if (high > 0) atomicAdd(&room.carries[level][bin], high);
    if (counts) atomicAdd(&room.counts[level][bin], 1u);
}

__device__ __forceinline__ u64 sum_of(const Room& room, u32 level, u32 bin) {
    return (u64)room.carries[level][bin] << 32 | room.sums[level][bin];
}

// The bin in which, from the highest bin down, the count or the sum (whichever `by_count` says) passes `target`: the first
// whose end is beyond it. All threads come with the same arguments.
__device__ __forceinline__ void find_bin(Room& room, u32 level, bool by_count, u64 target, u32 count_before, u64 sum_before) {
    // A thread looks after one bin, the first thread after the highest.
    const u32 bin = BINS - 1 - threadIdx.x, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const u64 own_sum = sum_of(room, level, bin);
    const u32 own_count = room.counts[level][bin];
    u64 sum = own_sum;
    u32 count = own_count;
#pragma unroll
    for (u32 apart = 1; apart < WARP; apart *= 2) {
        const u64 other_sum = __shfl_up_sync(ALL_LANES, sum, apart);
        const u32 other_count = __shfl_up_sync(ALL_LANES, count, apart);
        if (lane >= apart) sum += other_sum, count += other_count;
    }
    if (lane == WARP - 1) room.warps[warp] = sum, room.ids[warp] = count;
    __syncthreads();
    sum += sum_before, count += count_before;
    for (u32 other = 0; other < warp; other++) sum += room.warps[other], count += room.ids[other];
    // `sum` and `count` now reach to the end of the bin.
    const u64 end = by_count ? count : sum, start = end - (by_count ? own_count : own_sum);
    if (start <= target && target < end) room.bin = bin, room.count_before = count - own_count, room.sum_before = sum - own_sum;
    __syncthreads();
}

// The place at which count or sum pass `target`, which lies below the whole count or sum. The histogram of the highest
// bits is at level 0.
__device__ __forceinline__ Place find(const Weights& weights, Room& room, bool by_count, u64 target) {
    find_bin(room, 0, by_count, target, 0, 0);
    u32 bits = room.bin;
    u32 count_before = room.count_before;
    u64 sum_before = room.sum_before;
    // The loop stays one: two copies of a reading of the row would only fill the instruction cache.
#pragma unroll 1
    for (u32 shift = 10;; shift = 0) {
        clear(room, 1);
        weights.for_each([&](u32, float weight) {
            const u32 own = __float_as_uint(weight) >> shift;
            if (own / BINS == bits) add(room, 1, own % BINS, in_units(weight), true);
        });
        __syncthreads();
        find_bin(room, 1, by_count, target, count_before, sum_before);
        bits = bits * BINS + room.bin, count_before = room.count_before, sum_before = room.sum_before;
        if (shift == 0) break;
    }
    const Place place = {bits, count_before, sum_before, room.counts[1][bits % BINS]};
    __syncthreads();
    return place;
}

// The token that stands `nth` among those of one weight, by id. A thread looks at a stretch of neighbouring ids.
__device__ __forceinline__ void pick_of_equals(const Weights& weights, Room& room, const Place& place, u32 nth, u32* token) {
    if (place.count == 1) {
        weights.for_each([&](u32 id, float weight) {
            if (__float_as_uint(weight) == place.bits) *token = id;
        });
        return;
    }
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const u32 stretch = (weights.vocabulary + THREADS - 1) / THREADS;
    const u32 first = min(threadIdx.x * stretch, weights.vocabulary), end = min(first + stretch, weights.vocabulary);
    const auto is_one = [&](u32 id) {
        const float logit = weights.row[id];
        if (!is_finite(logit) || (weights.allowed && !(weights.allowed[id / 32] >> id % 32 & 1))) return false;
        return __float_as_uint(expf((logit - weights.largest) / weights.temperature)) == place.bits;
    };
    u32 own = 0;
    for (u32 id = first; id < end; id++) own += is_one(id);
    u32 before = own;
#pragma unroll
    for (u32 apart = 1; apart < WARP; apart *= 2) {
        const u32 other = __shfl_up_sync(ALL_LANES, before, apart);
        if (lane >= apart) before += other;
    }
    if (lane == WARP - 1) room.ids[warp] = before;
    __syncthreads();
    before -= own;
    for (u32 other = 0; other < warp; other++) before += room.ids[other];
    if (before <= nth && nth < before + own) {
        for (u32 id = first; id < end; id++) {
            if (is_one(id) && before++ == nth) *token = id;
        }
    }
}

// logits [rows, vocabulary] f32; samplings [rows]; positions [rows]: the draw of a row is for position
// positions[row] + ahead (modulo 2^32). allowed [rows, ceil(vocabulary / 32)] (optional): only tokens whose bit
// (1 << id % 32) is set. tokens [rows]: the picked ids; NONE where no logit is a number. No logit that is infinite or NaN
// is picked, nor weighs anything. The vocabulary is at most 2^23.
// Grid (rows), block 1024.
KERNEL(sample, 1024, 1, const float* logits, const Sampling* samplings, const u32* positions, u32 ahead, const u32* allowed,
       u32* tokens, u32 vocabulary) {
    __shared__ Room room;
    const u32 row = blockIdx.x;
    const Sampling how = samplings[row];
    Weights weights = {logits + (u64)row * vocabulary, allowed ? allowed + (u64)row * ((vocabulary + 31) / 32) : 0, vocabulary,
                       0.0f, how.temperature};
    const u32 best = likeliest(weights.row, weights.allowed, vocabulary, room, weights.largest);
    if (threadIdx.x == 0) tokens[row] = best;
    if (best == NONE || !(how.temperature > 0.0f) || how.top_k == 1) return;
    const auto block_total = [&](u64 value) {
#pragma unroll
        for (u32 apart = WARP / 2; apart > 0; apart /= 2) value += __shfl_xor_sync(ALL_LANES, value, apart);
        __syncthreads();
        if (threadIdx.x % WARP == 0) room.warps[threadIdx.x / WARP] = value;
        __syncthreads();
        value = 0;
#pragma unroll 4
        for (u32 warp = 0; warp < THREADS / WARP; warp++) value += room.warps[warp];
        __syncthreads();
        return value;
    };

    // What is kept after top_k, after top_p, and then the draw among it: one search each, all in one loop, so that their
    // code is there once. The first histogram leaves out the many tokens of next to no weight, which would only stand in
    // each other's way; it is made again with all of them if a search leads among them.
    Place place = {0, 0, 0, 0};
    u64 sum = 0, count = 0, likely = 0, target = 0, covered_sum = 0, covered_count = 0;
    float least = LEAST;
    bool filled = false;
#pragma unroll 1
    for (u32 search = 0; search < 3;) {
        if (!filled) {
            clear(room, 0);
            u64 own_sum = 0, own_likely = 0, own_covered_sum = 0;
            u32 own_count = 0, own_covered_count = 0;
            weights.for_each([&](u32, float weight) {
                const u64 units = in_units(weight);
                own_sum += units, own_count++;
                if (weight >= how.min_p) own_likely += units;
                if (weight < least) return;
                own_covered_sum += units, own_covered_count++;
                add(room, 0, __float_as_uint(weight) >> 20, units, how.top_k > 0);
            });
            // Once a search has cut the sum, it lies within what is covered, and this does not come again.
            sum = block_total(own_sum), count = block_total(own_count), likely = block_total(own_likely);
            covered_sum = block_total(own_covered_sum), covered_count = block_total(own_covered_count);
            filled = true;
        }
        if (search == 0) {
            if (how.top_k == 0 || how.top_k >= count) {
                search++;
                continue;
            }
            target = how.top_k - 1;
        } else if (search == 1) {
            if (!(how.top_p < 1.0f)) {
                search++;
                continue;
            }
            // The last that is kept is the one that reaches it: before it the sum is short of it.
            target = max((u64)((double)sum * how.top_p), 1ull) - 1;
        } else {
            // The likeliest weighs 1, and so is among those of at least min_p.
            sum = min(sum, likely);
            target = (u64)((double)uniform(how.seed, positions[row] + ahead) * (double)sum);
        }
        if (least > 0.0f && target >= (search == 0 ? covered_count : covered_sum)) {
            least = 0.0f, filled = false;
            continue;
        }
        place = find(weights, room, search == 0, target);
        const u64 units = in_units(__uint_as_float(place.bits));
        if (search == 0) sum = place.sum_before + (how.top_k - place.count_before) * units;
        if (search == 1) sum = min(sum, place.sum_before + (target - place.sum_before + units) / units * units);
        search++;
    }
    const u64 units = in_units(__uint_as_float(place.bits));
    pick_of_equals(weights, room, place, (u32)((target - place.sum_before) / units), tokens + row);
}

// Only the likeliest, ties to the lower id, for rows that all want that. Arguments as above. Grid (rows), block 1024.
KERNEL(argmax, 1024, 1, const float* logits, const u32* allowed, u32* tokens, u32 vocabulary) {
    __shared__ Room room;
    const u32 row = blockIdx.x;
    float largest;
    const u32* own_allowed = allowed ? allowed + (u64)row * ((vocabulary + 31) / 32) : 0;
    const u32 best = likeliest(logits + (u64)row * vocabulary, own_allowed, vocabulary, room, largest);
    if (threadIdx.x == 0) tokens[row] = best;
}

// Prepares the next decode step of each row: the picked token becomes the input, position and context grow by one, the
// slot follows from the block table. A row whose context is 0 stays as it is. NONE as a token becomes input 0.
// A position past the table, or a table entry of NONE, makes the slot NONE.
//
// picked, inputs, positions, slots, contexts [count]; tables [count, table_stride].
// Grid (ceil(count / 128)), block 128.
KERNEL(advance, 128, 1, const u32* picked, u32* inputs, u32* positions, u32* slots, u32* contexts, const u32* tables,
       u32 table_stride, u32 count) {
    const u32 row = blockIdx.x * 128 + threadIdx.x;
    if (row >= count || contexts[row] == 0) return;
    const u32 position = positions[row] + 1, entry = position / BLOCK;
    inputs[row] = picked[row] == NONE ? 0 : picked[row];
    positions[row] = position;
    contexts[row]++;
    const u32 block = entry < table_stride ? tables[(u64)row * table_stride + entry] : NONE;
    slots[row] = block == NONE ? NONE : block * BLOCK + position % BLOCK;
}
