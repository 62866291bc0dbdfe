// Benches: set up in ring 0, run in ring 3, which is native where ring 0 is emulated, told of in ring 0. They end the machine.

#include "block.h"

#define MOST 64
#define BUFFERS 0x2000000ull // from 32 MiB on: the machine needs 32 MiB and MOST pieces, or as many as its depth

static struct queue queue;
static struct request requests[MOST];
static struct descriptor tables[MOST][4] __attribute__((aligned(64)));
static u8 user_stack[8192] __attribute__((aligned(16)));

static struct {
    u64 sectors, amount, bytes;
    u32 depth;
    int seconds, random, events;
    const char *name;
} job;

static struct {
    u64 count, cycles, errors, bells;
} got;

static void results(void) {
    print(job.name);
    print(" requests ");
    print_dec(got.count);
    print(" bytes ");
    print_dec(job.bytes);
    print(" cycles ");
    print_dec(got.cycles);
    print(" khz ");
    print_dec(cycles_ms);
    print(" bells ");
    print_dec(got.bells);
    print(" errors ");
    print_dec(got.errors);
    print("\n");
    power_off();
}

// Make a slot's request available. Each is one indirect table.
static inline void again(u32 slot, u64 *state, u64 *next) {
    u64 places = job.sectors / (job.bytes / 512), place;
    if (job.random)
        place = random32(state) % places;
    else
        place = (*next)++ % places;
    requests[slot].header.sector = place * (job.bytes / 512);
    queue.avail.ring[(u16)(queue.avail.index) % 64] = (u16)slot;
    barrier();
    queue.avail.index++;
}

// Ring the bell if the device waits for it (§2.7.10).
static inline u64 ring(u16 before) {
    fence();
    u16 now = queue.avail.index;
    int wanted = job.events ? (u16)(now - queue.used.avail_event - 1) < (u16)(now - before) : !(queue.used.flags & 1);
    if (wanted)
        put16(queue.bell, queue.number);
    return (u64)wanted;
}

static NOINLINE void run(void) {
    u64 state = 88172645463325252ull, next = 0, started = 0, ended = 0, errors = 0, bells = 0;
    u64 start = tsc(), end = job.seconds ? start + job.amount * 1000 * cycles_ms : ~0ull;
    u64 most = job.seconds ? ~0ull : job.amount;
    u16 before = queue.avail.index;
    while (started < job.depth && started < most)
        again((u32)started++, &state, &next);
    bells += ring(before);
    while (ended < started) {
        if (queue.used.index == queue.seen) {
            rest();
            continue;
        }
        barrier();
        before = queue.avail.index;
        int on = tsc() < end;
        while (queue.used.index != queue.seen) {
            u32 slot = queue.used.ring[queue.seen++ % 64].head;
            errors += requests[slot].status != OK;
            ended++;
            if (started < most && on) {
                again(slot, &state, &next);
                started++;
            }
        }
        if (queue.avail.index != before)
            bells += ring(before);
    }
    got.count = ended;
    got.cycles = tsc() - start;
    got.errors = errors;
    got.bells = bells;
    leave_user_mode();
}

static result prepare_bench(struct device *d, u32 kind) {
    if (!d)
        return "there is no disk";
    job.events = !!(offered(d) & EVENT_IDX);
    result why = set_up(d, VERSION_1 | INDIRECT | (offered(d) & EVENT_IDX), &queue, 1);
    if (why)
        return why;
    job.sectors = get32(d->config) | (u64)get32(d->config + 4) << 32;
    // No interrupts: by the flag, or an index that is far away.
    queue.avail.flags = 1;
    queue.avail.used_event = 0x7fff;
    mask(d, 1, 1);
    for (u32 slot = 0; slot < job.depth; slot++) {
        struct descriptor *t = tables[slot];
        requests[slot].header.kind = kind;
        t[0] = (struct descriptor){(u64)&requests[slot].header, 16, NEXT, 1};
        t[1] = (struct descriptor){BUFFERS + slot * job.bytes, (u32)job.bytes, NEXT | WRITE, 2};
        t[2] = (struct descriptor){(u64)&requests[slot].status, 1, WRITE, 0};
        queue.table[slot] = (struct descriptor){(u64)t, 48, IN_TABLE, 0};
    }
    return 0;
}

void bench(struct device *d, u32 depth, u64 amount, int seconds, u32 bytes, int random) {
    job.depth = depth < 1 ? 1 : depth > MOST ? MOST : depth;
    job.amount = amount;
    job.seconds = seconds;
    job.bytes = bytes;
    job.random = random;
    result why = prepare_bench(d, IN);
    if (!why && job.sectors < bytes / 512)
        why = "the disk is too small";
    if (why) {
        print(why);
        print("\n");
        power_off();
    }
    job.name = random ? "iops" : "mbps";
    in_user_mode(run, user_stack + sizeof user_stack - 8, results);
}

static NOINLINE void run_bell(void) {
    u64 start = tsc();
    for (u64 i = 0; i < job.amount; i++)
        put16(queue.bell, queue.number);
    got.count = got.bells = job.amount;
    got.cycles = tsc() - start;
    leave_user_mode();
}

void bench_bell(struct device *d, u64 count) {
    job.amount = count;
    result why = prepare_bench(d, IN);
    if (why) {
        print(why);
        print("\n");
        power_off();
    }
    job.name = "bell";
    in_user_mode(run_bell, user_stack + sizeof user_stack - 8, results);
}
