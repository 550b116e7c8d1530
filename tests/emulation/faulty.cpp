// Kernels with planted mistakes, one each: the machine must find them all, or its silence about ours means nothing.
#include <cooperation.cuh>

struct FaultyArguments {
    uint32_t* out;
    uint32_t count;
};

CIR_KERNEL(correct, FaultyArguments, 64, 1) {
    auto* shared = reinterpret_cast<uint32_t*>(device::shared());
    shared[device::thread()] = device::thread();
    device::barrier();
    args.out[device::thread()] = shared[63 - device::thread()];
}

CIR_KERNEL(writes_beyond_the_end, FaultyArguments, 64, 1) { args.out[args.count + device::thread() / 63 * 4] = 1; }

CIR_KERNEL(reads_before_the_start, FaultyArguments, 64, 1) {
    args.out[0] = args.out[-1024 - static_cast<int>(args.count)];
}

CIR_KERNEL(uses_more_shared_memory_than_it_asked_for, FaultyArguments, 64, 1) {
    reinterpret_cast<uint32_t*>(device::shared())[device::thread() + 4] = 1;
}

CIR_KERNEL(forgets_a_barrier, FaultyArguments, 64, 1) {
    auto* shared = reinterpret_cast<uint32_t*>(device::shared());
    shared[device::thread()] = device::thread();
    args.out[device::thread()] = shared[63 - device::thread()];
}

CIR_KERNEL(reads_what_nothing_wrote, FaultyArguments, 64, 1) {
    auto* shared = reinterpret_cast<uint32_t*>(device::shared());
    if (device::thread() != 5) shared[device::thread()] = device::thread();
    device::barrier();
    args.out[device::thread()] = shared[device::thread()];
}

CIR_KERNEL(half_the_block_skips_a_barrier, FaultyArguments, 64, 1) {
    if (device::thread() < 32) device::barrier();
    args.out[device::thread()] = 1;
}

CIR_KERNEL(lanes_take_different_barriers, FaultyArguments, 64, 1) {
    if (device::thread() % 2 == 0) {
        device::barrier();
    } else {
        device::barrier();
    }
    args.out[device::thread()] = 1;
}

CIR_KERNEL(a_lane_misses_a_shuffle, FaultyArguments, 64, 1) {
    uint32_t v = device::thread();
    if (device::lane() != 3) v = device::from_lane_xor(v, 1);
    args.out[device::thread()] = v;
}

CIR_KERNEL(loads_a_vector_from_an_odd_address, FaultyArguments, 64, 1) {
    args.out[device::thread()] = device::load16(args.out + 1).word[0];
}

CIR_KERNEL(writes_one_beyond_the_end, FaultyArguments, 64, 1) {
    args.out[device::thread()] = 1;
    if (device::thread() == 63) args.out[args.count] = 1;
}

CIR_KERNEL(reads_one_before_the_start, FaultyArguments, 64, 1) { args.out[device::thread()] = args.out[-1]; }

CIR_KERNEL(reads_memory_of_the_gpu_that_nothing_wrote, FaultyArguments, 64, 1) {
    if (device::thread() < 32) args.out[device::thread()] = args.out[63 - device::thread()];
}

CIR_KERNEL(writes_what_others_still_read, FaultyArguments, 64, 1) {
    auto* shared = reinterpret_cast<uint32_t*>(device::shared());
    shared[device::thread()] = device::thread();
    device::barrier();
    if (device::thread() < 32) args.out[device::thread()] = shared[63 - device::thread()];
    else shared[device::thread()] = 0;
}

CIR_KERNEL(reads_of_the_gpu_what_others_just_write, FaultyArguments, 64, 1) {
    args.out[device::thread()] = 0;
    device::barrier();
    args.out[device::thread()] = device::load_fresh(args.out + (device::thread() ^ 1));
}

CIR_KERNEL(counts, FaultyArguments, 64, 1) {
    auto* shared = reinterpret_cast<uint32_t*>(device::shared());
    if (device::thread() == 0) *shared = 0;
    device::barrier();
    const uint32_t place = device::add(shared, 1);
    device::barrier();
    args.out[place] = *shared;
}

CIR_KERNEL(reads_a_count_that_others_raise, FaultyArguments, 64, 1) {
    auto* shared = reinterpret_cast<uint32_t*>(device::shared());
    if (device::thread() == 0) *shared = 0;
    device::barrier();
    device::add(shared, 1);
    args.out[device::thread()] = *shared;
}

CIR_KERNEL(counts_from_nothing, FaultyArguments, 64, 1) {
    args.out[device::thread()] = device::add(reinterpret_cast<uint32_t*>(device::shared()), 1);
}

// A shuffle lets the lanes meet and orders no memory.
CIR_KERNEL(takes_a_shuffle_for_a_barrier, FaultyArguments, 64, 1) {
    auto* shared = reinterpret_cast<uint32_t*>(device::shared());
    shared[device::thread()] = device::thread();
    device::ballot(true);
    args.out[device::thread()] = shared[device::thread() ^ 1];
}

// Each block leaves its part; the last one to finish adds all parts up.
template <bool kFence, bool kBarrier, class Read>
void add_up(const FaultyArguments& args, Read read) {
    uint32_t *ticket = args.out, *parts = args.out + 1, *sums = parts + device::grid_x() * 64;
    auto* last = reinterpret_cast<uint32_t*>(device::shared());
    parts[device::block_x() * 64 + device::thread()] = device::thread();
    if (kFence) device::fence();
    if (kBarrier) device::barrier();
    if (device::thread() == 0) *last = device::add(ticket, 1) + 1 == device::grid_x();
    device::barrier();
    if (!*last) return;
    uint32_t sum = 0;
    for (uint32_t i = 0; i < device::grid_x() * 64; ++i) sum += read(parts + i);
    sums[device::thread()] = sum;
}
uint32_t fresh(const uint32_t* where) { return device::load_fresh(where); }
uint32_t plain(const uint32_t* where) { return *where; }
uint32_t constant(const uint32_t* where) { return device::bits(device::load(reinterpret_cast<const float*>(where))); }

CIR_KERNEL(last_block_adds_up, FaultyArguments, 64, 1) { add_up<true, true>(args, fresh); }
CIR_KERNEL(orders_nothing_by_a_fence, FaultyArguments, 64, 1) { add_up<false, true>(args, fresh); }
CIR_KERNEL(takes_the_ticket_before_others_have_written, FaultyArguments, 64, 1) { add_up<true, false>(args, fresh); }
CIR_KERNEL(reads_other_blocks_from_a_cache, FaultyArguments, 64, 1) { add_up<true, true>(args, plain); }
CIR_KERNEL(reads_other_blocks_as_constants, FaultyArguments, 64, 1) { add_up<true, true>(args, constant); }

// The same with one fence for all, by whoever takes the ticket.
template <bool kAfterBarrier>
void add_up_by_one_fence(const FaultyArguments& args) {
    uint32_t *ticket = args.out, *parts = args.out + 1, *sums = parts + device::grid_x() * 64;
    auto* last = reinterpret_cast<uint32_t*>(device::shared());
    parts[device::block_x() * 64 + device::thread()] = device::thread();
    if (!kAfterBarrier && device::thread() == 0) device::release();
    device::barrier();
    if (device::thread() == 0) {
        if (kAfterBarrier) device::release();
        *last = device::add(ticket, 1) + 1 == device::grid_x();
    }
    device::barrier();
    if (!*last) return;
    uint32_t sum = 0;
    for (uint32_t i = 0; i < device::grid_x() * 64; ++i) sum += fresh(parts + i);
    sums[device::thread()] = sum;
}
CIR_KERNEL(one_fence_for_all, FaultyArguments, 64, 1) { add_up_by_one_fence<true>(args); }
CIR_KERNEL(one_fence_too_early, FaultyArguments, 64, 1) { add_up_by_one_fence<false>(args); }

// Blocks that wait for one another, as a cooperative launch allows: each reads what its neighbour has left.
template <bool kWaits>
void swap_with_neighbour(const FaultyArguments& args, uint32_t wanted) {
    uint32_t *count = args.out, *parts = args.out + 1, *found = parts + device::grid_x() * 64;
    const uint32_t block = device::block_x(), neighbour = (block + 1) % device::grid_x();
    parts[block * 64 + device::thread()] = block;
    device::barrier();
    if (device::thread() == 0) {
        device::release();
        device::add(count, 1);
        if (kWaits) device::wait_for(count, wanted);
    }
    device::barrier();
    found[block * 64 + device::thread()] = fresh(parts + neighbour * 64 + device::thread());
}
CIR_KERNEL(blocks_swap, FaultyArguments, 64, 1) { swap_with_neighbour<true>(args, device::grid_x()); }
CIR_KERNEL(waits_for_a_block_too_few, FaultyArguments, 64, 1) { swap_with_neighbour<true>(args, device::grid_x() - 1); }
CIR_KERNEL(waits_for_a_block_too_many, FaultyArguments, 64, 1) { swap_with_neighbour<true>(args, device::grid_x() + 1); }
CIR_KERNEL(waits_for_no_block, FaultyArguments, 64, 1) { swap_with_neighbour<false>(args, 0); }
