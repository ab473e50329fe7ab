// Runs launches on the host: blocks one after the other, the threads of a block as fibers of one thread.

#include "emulation.h"

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <vector>

// The bounds of the section of shared memory, named by the linker.
extern "C" unsigned char __start_vlinders_shared[], __stop_vlinders_shared[];
extern "C" {
// So that there is such a section.
__attribute__((section("vlinders_shared"), aligned(16), used)) unsigned char vlinders_shared_first[16];
}

namespace emulated {

Index thread_index, block_index, block_size, grid_size;
unsigned char* dynamic_shared;

namespace {

constexpr size_t STACK = 128 << 10;
// Of a device whose blocks may take up to 227 KiB.
constexpr unsigned SHARED_MOST = 227 << 10;

struct Copy {
    void* to;
    const void* from;
    size_t bytes, zeros;
    unsigned group;
};

// Those who meet: how many have come, and how often all had come before.
struct Gathering {
    unsigned come = 0, times = 0;
};

struct Fiber {
    ucontext_t context;
#if defined(__x86_64__)
    void* stack_pointer = nullptr;
#endif
    unsigned char* stack;
    bool done;
    const Gathering* awaited;
    unsigned awaited_times;
    std::vector<Copy> copies;
    unsigned groups;
};

struct Warp {
    Gathering gathering;
    Meeting meeting;
    unsigned char values[2][32][64];
};

Entry* entries;
std::mutex launching;
std::vector<Fiber> fibers;
std::vector<Warp> warps;
Gathering everyone;
Fiber* running;
const Entry* launched;
void** launched_arguments;
std::vector<unsigned char> dynamic_memory;

#if defined(__x86_64__)
void* scheduler_stack_pointer;
// Saves what a called function must keep, and goes on where the other one stopped.
__attribute__((naked, noinline)) void change_stack(void** /*from*/, void* /*to*/) {
    asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15;"
        "movq %rsp, (%rdi); movq %rsi, %rsp;"
        "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}
#else
ucontext_t scheduler;
#endif

void to_scheduler() {
#if defined(__x86_64__)
    change_stack(&running->stack_pointer, scheduler_stack_pointer);
#else
    swapcontext(&running->context, &scheduler);
#endif
}

void run_thread() {
    launched->start(launched_arguments);
    if (!running->copies.empty()) fail("a thread ends with copies that it did not wait for");
    running->done = true;
    to_scheduler();
    abort();
}

void prepare(Fiber& fiber) {
    fiber.done = false;
    fiber.awaited = nullptr;
    fiber.groups = 0;
    fiber.copies.clear();
#if defined(__x86_64__)
    void** top = reinterpret_cast<void**>(fiber.stack + STACK - 64);
    *--top = nullptr;  // So that the stack is aligned as after a call.
    *--top = reinterpret_cast<void*>(run_thread);
    for (int saved = 0; saved < 6; saved++) *--top = nullptr;
    fiber.stack_pointer = top;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_thread, 0);
#endif
}

void resume(Fiber& fiber) {
    running = &fiber;
    thread_index = {unsigned(&fiber - fibers.data()), 0, 0};
#if defined(__x86_64__)
    change_stack(&scheduler_stack_pointer, fiber.stack_pointer);
#else
    swapcontext(&scheduler, &fiber.context);
#endif
}

// Whoever comes last goes on at once; the others yield until then.
void meet(Gathering& gathering, unsigned expected) {
    const unsigned times = gathering.times;
    if (++gathering.come == expected) {
        gathering.come = 0;
        gathering.times++;
        return;
    }
    running->awaited = &gathering;
    running->awaited_times = times;
    to_scheduler();
}

bool can_run(const Fiber& fiber) {
    return !fiber.done && (fiber.awaited == nullptr || fiber.awaited->times != fiber.awaited_times);
}

void run_block(unsigned order, std::mt19937& random) {
    const unsigned threads = block_size.x;
    // A byte of 0xff everywhere is a NaN in every format.
    memset(__start_vlinders_shared, 0xff, size_t(__stop_vlinders_shared - __start_vlinders_shared));
    std::fill(dynamic_memory.begin(), dynamic_memory.end(), 0xff);
    everyone = {};
    for (Warp& warp : warps) {
        warp.gathering = {};
        memset(warp.values, 0xff, sizeof warp.values);
    }
    for (unsigned thread = 0; thread < threads; thread++) prepare(fibers[thread]);
    std::vector<unsigned> turns(threads);
    std::iota(turns.begin(), turns.end(), 0);
    if (order == 1) std::reverse(turns.begin(), turns.end());
    for (unsigned left = threads; left > 0;) {
        if (order > 1) std::shuffle(turns.begin(), turns.end(), random);
        bool progress = false;
        for (const unsigned turn : turns) {
            Fiber& fiber = fibers[turn];
            if (!can_run(fiber)) continue;
            fiber.awaited = nullptr;
            resume(fiber);
            progress = true;
            left -= fiber.done;
        }
        if (!progress) fail("threads wait for others that have left, or that wait elsewhere");
    }
}

void report_fault(int) {
    // Not safe within a signal handler in general; the process ends here in any case.
    fail("an access outside of every buffer");
}

// The handler has a stack of its own, for each thread that launches: a fiber's may be what has no room.
void report_faults() {
    static thread_local std::vector<unsigned char> room;
    if (!room.empty()) return;
    room.resize(64 << 10);
    stack_t stack = {};
    stack.ss_sp = room.data();
    stack.ss_size = room.size();
    struct sigaction action = {};
    action.sa_handler = report_fault;
    action.sa_flags = SA_ONSTACK;
    if (sigaltstack(&stack, nullptr) != 0 || sigaction(SIGSEGV, &action, nullptr) != 0) abort();
}

}  // namespace

Entry::Entry(const char* name, unsigned threads, void (*start)(void**)) : name(name), threads(threads), start(start), next(entries) {
    entries = this;
}

void fail(const char* what) {
    fprintf(stderr, "%s: %s (block %u %u %u, thread %u)\n", launched ? launched->name : "emulation", what, block_index.x,
            block_index.y, block_index.z, thread_index.x);
    _exit(134);
}

const unsigned char* exchange(Meeting meeting, const void* mine, size_t bytes) {
    if (bytes > 64) fail("an exchange of more than 64 bytes");
    Warp& warp = warps[thread_index.x / 32];
    const unsigned side = warp.gathering.times % 2;
    if (warp.gathering.come == 0) warp.meeting = meeting;
    if (warp.meeting != meeting) fail("the lanes of a warp meet in different exchanges");
    if (bytes > 0) memcpy(warp.values[side][lane()], mine, bytes);
    meet(warp.gathering, 32);
    return warp.values[side][0];
}

void barrier() { meet(everyone, block_size.x); }

void copy_later(void* to, const void* from, size_t bytes, size_t zeros) {
    if (uintptr_t(to) % 16 != 0 || uintptr_t(from) % 16 != 0) fail("an asynchronous copy is not aligned to 16 bytes");
    running->copies.push_back({to, from, bytes, zeros, running->groups});
}

void commit_copies() { running->groups++; }

void await_copies(unsigned groups_left) {
    std::vector<Copy>& copies = running->copies;
    size_t done = 0;
    while (done < copies.size() && copies[done].group + groups_left < running->groups) {
        const Copy& copy = copies[done++];
        memcpy(copy.to, copy.from, copy.bytes);
        memset(static_cast<unsigned char*>(copy.to) + copy.bytes, 0, copy.zeros);
    }
    copies.erase(copies.begin(), copies.begin() + long(done));
}

}  // namespace emulated

using namespace emulated;

// Runs a kernel and returns null, or what is wrong with the launch. `order` says in which order threads run between
// meetings, and blocks: 0 as they are numbered, 1 backwards, any other number shuffled by it.
extern "C" const char* emulated_launch(const char* name, const unsigned grid[3], const unsigned block[3], unsigned shared,
                                       void** arguments, unsigned order) {
    const std::lock_guard<std::mutex> lock(launching);
    static std::string wrong;
    const Entry* entry = entries;
    while (entry && strcmp(entry->name, name) != 0) entry = entry->next;
    if (!entry) return (wrong = std::string("no kernel is named ") + name).c_str();
    if (block[0] != entry->threads || block[1] != 1 || block[2] != 1)
        return (wrong = std::string(name) + " wants blocks of " + std::to_string(entry->threads) + " threads").c_str();
    if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || grid[1] > 65535 || grid[2] > 65535)
        return (wrong = std::string("a grid of no blocks, or of too many, for ") + name).c_str();
    if (shared > SHARED_MOST) return (wrong = std::string("more shared memory than a block can have, for ") + name).c_str();
    report_faults();
    launched = entry;
    launched_arguments = arguments;
    grid_size = {grid[0], grid[1], grid[2]};
    block_size = {block[0], 1, 1};
    dynamic_memory.resize(shared + 128);
    dynamic_shared = dynamic_memory.data() + (128 - uintptr_t(dynamic_memory.data()) % 128) % 128;
    // A write past the dynamic shared memory is within the vector at most by 128 bytes: looked at after each block.
    while (fibers.size() < entry->threads) {
        Fiber& fiber = fibers.emplace_back();
        fiber.stack = static_cast<unsigned char*>(mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    }
    warps.resize(entry->threads / 32);
    std::mt19937 random(order);
    const size_t blocks = size_t(grid[0]) * grid[1] * grid[2];
    std::vector<size_t> turns(blocks);
    std::iota(turns.begin(), turns.end(), 0);
    if (order == 1) std::reverse(turns.begin(), turns.end());
    if (order > 1) std::shuffle(turns.begin(), turns.end(), random);
    for (const size_t turn : turns) {
        block_index = {unsigned(turn % grid[0]), unsigned(turn / grid[0] % grid[1]), unsigned(turn / grid[0] / grid[1])};
        run_block(order, random);
        for (const unsigned char* at = dynamic_shared + shared; at < dynamic_memory.data() + dynamic_memory.size(); at++)
            if (*at != 0xff) fail("a write past the dynamic shared memory");
    }
    launched = nullptr;
    return nullptr;
}

// Memory of which the bytes before (or, `at_end`, behind) are not there: whoever touches them ends the process. The block
// is filled with 0xff.
extern "C" void* emulated_allocate(size_t bytes, bool at_end) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    const size_t padded = (bytes + 15) / 16 * 16, inner = (padded + page - 1) / page * page;
    auto* whole = static_cast<unsigned char*>(
        mmap(nullptr, inner + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (whole == MAP_FAILED) return nullptr;
    memset(whole, 0xff, inner + 2 * page);
    mprotect(whole, page, PROT_NONE);
    mprotect(whole + page + inner, page, PROT_NONE);
    return whole + page + (at_end ? inner - padded : 0);
}

extern "C" void emulated_release(void* memory, size_t bytes) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    const size_t padded = (bytes + 15) / 16 * 16, inner = (padded + page - 1) / page * page;
    munmap(reinterpret_cast<void*>(uintptr_t(memory) / page * page - page), inner + 2 * page);
}
