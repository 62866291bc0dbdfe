// The cases of the conformance suite. The command line says which: `suite`, with `resize` if somebody will answer
// "resize me", or one of the commands below.

#include "block.h"

static struct queue queues[MAX_QUEUES];
static struct request requests[MAX_QUEUES];
static u8 data[MAX_QUEUES][8192] __attribute__((aligned(4096)));
static u8 other[8192] __attribute__((aligned(4096)));

static u32 passed, failed;

static void report(const char *name, result why) {
    print(why ? "not ok " : "ok ");
    print(name);
    if (why) {
        print(": ");
        print(why);
        failed++;
    } else
        passed++;
    print("\n");
}

#define need(what, why) do { if (!(what)) return why; } while (0)

static void fill(u8 *at, u32 length, u8 seed) {
    for (u32 i = 0; i < length; i += 4)
        *(u32 *)(at + i) = (i * 2654435761u) ^ (seed * 0x01010101u);
}

static int same(const u8 *a, const u8 *b, u32 length) {
    for (u32 i = 0; i < length; i += 4)
        if (*(const u32 *)(a + i) != *(const u32 *)(b + i))
            return 0;
    return 1;
}

static int all(const u8 *at, u32 length, u8 value) {
    for (u32 i = 0; i < length; i++)
        if (at[i] != value)
            return 0;
    return 1;
}

static u64 capacity(struct device *d) { return get32(d->config) | (u64)get32(d->config + 4) << 32; }

// ---- PCI

static result enumeration(void) {
    need(config_read(0, 0) == 0x29c08086, "the host bridge");
    for (u8 n = 0; n < 32; n++)
        for (u32 reg = 0; reg < 64; reg += 4)
            need(port_read(n, reg) == config_read(n, reg), "ECAM and ports disagree");
    need(get32(ECAM + (1 << 12)) == 0xffffffff, "another function answers");
    need(port_read(31, 0) == 0xffffffff, "device 31 answers");
    out32(0xcf8, 0x80010000);
    need(in32(0xcfc) == 0xffffffff, "another bus answers");
    return find_devices();
}

static result read_only(void) {
    for (u32 i = 0; i < device_count; i++) {
        u8 n = devices[i].number;
        for (u32 reg = 0; reg < 256; reg += 4) {
            if (reg == 4 || reg == 0x10 || reg == 0x3c || reg == devices[i].msix ||
                (reg >= devices[i].access + 4 && reg <= devices[i].access + 16))
                continue;
            u32 before = config_read(n, reg);
            config_write(n, reg, ~before);
            need(config_read(n, reg) == before, "a read-only register changes");
        }
    }
    return 0;
}

static result windows(void) {
    struct device *d = find(BLOCK, 0);
    need(d->bar_size == 0x8000, "the window's size");
    for (u32 reg = 0x14; reg < 0x28; reg += 4)
        need(config_read(d->number, reg) == 0, "another window");
    u32 queues_there = get16(d->common + NUM_QUEUES);
    u64 elsewhere = 0xd0000000;
    config_write(d->number, 0x10, (u32)elsewhere);
    need(get16(elsewhere + (d->common - d->bar) + NUM_QUEUES) == queues_there, "the window does not move");
    need(get16(d->common + NUM_QUEUES) == 0xffff, "the window is at its old place, too");
    config_write16(d->number, 4, 0);
    need(get16(elsewhere + (d->common - d->bar) + NUM_QUEUES) == 0xffff, "a closed window answers");
    config_write(d->number, 0x10, (u32)d->bar);
    config_write16(d->number, 4, 6);
    need(get16(d->common + NUM_QUEUES) == queues_there, "the window does not come back");
    return 0;
}

static result access(void) {
    struct device *d = find(BLOCK, 0);
    config_write(d->number, d->access + 8, (u32)(d->common - d->bar) + NUM_QUEUES);
    config_write(d->number, d->access + 12, 2);
    u16 value = get16(ECAM + ((u64)d->number << 15) + d->access + 16);
    need(value == get16(d->common + NUM_QUEUES), "reading by configuration space");
    config_write(d->number, d->access + 8, (u32)(d->common - d->bar) + SELECT);
    config_write16(d->number, d->access + 16, 1);
    need(get16(d->common + SELECT) == 1, "writing by configuration space");
    return 0;
}

// ---- Virtio

static result features(void) {
    for (u32 i = 0; i < device_count; i++) {
        struct device *d = &devices[i];
        u64 bits = offered(d);
        need(bits & VERSION_1, "VERSION_1 is not offered");
        put32(d->common + DEVICE_SELECT, 2);
        need(get32(d->common + DEVICE_FEATURES) == 0, "features beyond 64");
        need(!negotiate(d, bits & ~VERSION_1), "a driver without VERSION_1");
        for (u32 bit = 0; bit < 64; bit += 7)
            if (!(bits >> bit & 1))
                need(!negotiate(d, VERSION_1 | 1ull << bit), "a feature that is not offered");
        put8(d->common + STATUS, ACKNOWLEDGE | DRIVER | DRIVER_OK);
        need(!(get8(d->common + STATUS) & DRIVER_OK), "DRIVER_OK before FEATURES_OK");
        need(negotiate(d, VERSION_1), "the least is refused");
        put32(d->common + DRIVER_SELECT, 0);
        put32(d->common + DRIVER_FEATURES, 0xffffffff);
        need(get32(d->common + DRIVER_FEATURES) == 0, "features change after FEATURES_OK");
        put8(d->common + STATUS, ACKNOWLEDGE);
        need(get8(d->common + STATUS) == (ACKNOWLEDGE | DRIVER | FEATURES_OK), "a status bit is taken back");
        need(negotiate(d, bits), "what is offered is refused");
        reset(d);
    }
    return 0;
}

static result queue_rules(void) {
    struct device *d = find(BLOCK, 0);
    need(negotiate(d, VERSION_1), "the features are refused");
    put16(d->common + SELECT, 0);
    u16 most = get16(d->common + SIZE);
    need(most && !(most & (most - 1)), "the largest size");
    u16 wrong[] = {0, 3, (u16)(most - 1), (u16)(most * 2), 0xffff};
    for (u32 i = 0; i < 5; i++) {
        put16(d->common + SIZE, wrong[i]);
        need(get16(d->common + SIZE) == most, "a wrong size is taken");
    }
    put16(d->common + VECTOR, d->vectors);
    need(get16(d->common + VECTOR) == NO_VECTOR, "a vector that is not there");
    put16(d->common + CONFIG_VECTOR, 0x700);
    need(get16(d->common + CONFIG_VECTOR) == NO_VECTOR, "a vector for changes that is not there");
    put16(d->common + SELECT, get16(d->common + NUM_QUEUES));
    need(get16(d->common + SIZE) == 0, "a queue that is not there");
    put16(d->common + ENABLE, 1);
    need(get16(d->common + ENABLE) == 0, "a queue that is not there is enabled");
    need(set_queue(d, 0, &queues[0], 16, 1), "the queue is refused");
    put16(d->common + SIZE, 8);
    put16(d->common + VECTOR, 0);
    put32(d->common + DESC, 0);
    put16(d->common + ENABLE, 0);
    need(get16(d->common + SIZE) == 16 && get16(d->common + VECTOR) == 1 && get16(d->common + ENABLE) == 1,
         "an enabled queue changes");
    need(get32(d->common + DESC) == (u32)(u64)queues[0].table, "an enabled queue moves");
    reset(d);
    put16(d->common + SELECT, 0);
    need(get16(d->common + SIZE) == most && !get16(d->common + ENABLE), "a reset leaves a queue");
    need(get16(d->common + VECTOR) == NO_VECTOR && get16(d->common + CONFIG_VECTOR) == NO_VECTOR,
         "a reset leaves a vector");
    need(get32(d->common + DESC) == 0, "a reset leaves an address");
    return 0;
}

static result broken_ring(void) {
    struct device *d = find(RNG, 0);
    result why = set_up(d, VERSION_1, queues, 1);
    need(!why, why);
    queues[0].avail.index = 1000;
    put16(queues[0].bell, 0);
    u64 end = deadline(2000);
    while (!(get8(d->common + STATUS) & NEEDS_RESET))
        need(tsc() < end, "it does not ask for a reset");
    need(comes(FIRST_VECTOR, 1, 2000), "no interrupt for that");
    reset(d);
    need(!(get8(d->common + STATUS) & NEEDS_RESET), "it asks after the reset, too");
    return 0;
}

// ---- Entropy

static u32 draw(u32 length, int by_interrupt) {
    struct queue *q = &queues[0];
    q->table[0] = (struct descriptor){(u64)data[0], length, WRITE, 0};
    for (u32 i = 0; i < length; i++)
        data[0][i] = 0;
    // What an earlier request brought comes first.
    if (by_interrupt)
        comes(0, 1, 2);
    u32 before = hits[FIRST_VECTOR + 1], got = 0;
    offer(q, 0, 1);
    if (by_interrupt && !comes(FIRST_VECTOR + 1, before + 1, 2000))
        return 0;
    if (takes(q, by_interrupt ? 0 : 2000, &got) != 0)
        return 0;
    return got;
}

static result entropy(void) {
    struct device *d = find(RNG, 0);
    result why = set_up(d, VERSION_1, queues, 1);
    need(!why, why);
    need(!comes(FIRST_VECTOR + 1, 1, 5), "a start interrupts");
    need(draw(64, 0) == 64, "it does not answer");
    need(!all(data[0], 64, 0), "zeroes");
    need(draw(64, 1) == 64, "it does not answer by interrupt");
    u32 first = *(u32 *)data[0];
    need(draw(64, 1) == 64 && *(u32 *)data[0] != first, "the same again");
    // Driven anew, with another size and elsewhere.
    need(negotiate(d, VERSION_1) && set_queue(d, 0, &queues[1], 8, 1), "a second set-up is refused");
    put8(d->common + STATUS, 15);
    queues[1].table[3] = (struct descriptor){(u64)data[1], 32, WRITE, 0};
    u32 got;
    for (u32 i = 0; i < 20; i++) {
        offer(&queues[1], 3, 1);
        need(takes(&queues[1], 2000, &got) == 3 && got == 32, "the new ring is not served");
    }
    reset(d);
    offer(&queues[1], 3, 1);
    need(takes(&queues[1], 20, 0) < 0, "it serves after a reset");
    return 0;
}

// ---- MSI-X

static u32 pending(struct device *d) { return get32(d->pending); }

static result msix(void) {
    struct device *d = find(RNG, 0);
    result why = set_up(d, VERSION_1, queues, 1);
    need(!why, why);
    mask(d, 1, 1);
    need(draw(32, 0) == 32, "it does not answer");
    need(!comes(FIRST_VECTOR + 1, 1, 20), "a masked vector comes");
    need(pending(d) == 2, "its pending bit");
    mask(d, 1, 0);
    need(comes(FIRST_VECTOR + 1, 1, 2000), "it does not come when unmasked");
    need(pending(d) == 0, "its pending bit stays");

    config_write16(d->number, d->msix + 2, 3 << 14);
    hits[FIRST_VECTOR + 1] = 0;
    need(draw(32, 0) == 32, "it does not answer");
    need(!comes(FIRST_VECTOR + 1, 1, 20), "a masked function's vector comes");
    need(pending(d) == 2, "its pending bit with the function masked");
    config_write16(d->number, d->msix + 2, 1 << 15);
    need(comes(FIRST_VECTOR + 1, 1, 2000), "it does not come with the function unmasked");

    set_vector(d, 1, 0, FIRST_VECTOR + 9);
    hits[FIRST_VECTOR + 1] = 0;
    need(draw(32, 0) == 32 && comes(FIRST_VECTOR + 9, 1, 2000), "the other vector does not come");
    need(hits[FIRST_VECTOR + 1] == 0, "the old vector comes");
    need(get32(d->table + 16 + 8) == FIRST_VECTOR + 9, "the table reads otherwise");
    put16(d->table + 16 + 8, 0x77);
    put32(d->table + 16 * 100, 0x77);
    need(get32(d->table + 16 + 8) == FIRST_VECTOR + 9, "a narrow write to the table");
    need(get32(d->table + 16 * 100) == 0, "an entry that is not there");
    need(get8(d->isr) == 0, "the ISR speaks though MSI-X is on");
    need(draw(32, 0) == 32 && get8(d->isr) == 0, "the ISR speaks after a request");
    reset(d);
    return 0;
}

static result other_processors(void) {
    if (start_cpus() < 2)
        return "skip: no second processor starts";
    struct device *d = find(RNG, 0);
    result why = set_up(d, VERSION_1, queues, 1);
    need(!why, why);
    for (u32 cpu = 1; cpu < cpus; cpu++) {
        u8 vector = (u8)(FIRST_VECTOR + 10 + cpu);
        hits[vector] = 0;
        set_vector(d, 1, cpu, vector);
        run_on(cpu, (void (*)(u64))interrupts_on, 0);
        need(has_ended(cpu, 2000), "a processor does not obey");
        need(draw(32, 0) == 32, "it does not answer");
        u64 end = deadline(2000);
        while (!hits[vector])
            need(tsc() < end, "no interrupt at another processor");
        need(hit_by[vector] == cpu, "it came to another one");
        run_on(cpu, (void (*)(u64))interrupts_off, 0);
        need(has_ended(cpu, 2000), "a processor does not obey");
    }
    reset(d);
    return 0;
}

// ---- Block

void prepare(struct queue *q, struct request *r, u32 slot, u32 kind, u64 sector, void *at, u32 length) {
    u16 first = (u16)(slot * 3), next = (u16)(first + (length ? 1 : 2));
    u32 header = kind == DISCARD || kind == ZEROES ? 32 : 16;
    r->header.kind = kind;
    r->header.sector = sector;
    r->status = NO_ANSWER;
    q->table[first] = (struct descriptor){(u64)&r->header, header, NEXT, next};
    q->table[first + 1] =
        (struct descriptor){(u64)at, length, kind == OUT ? NEXT : NEXT | WRITE, (u16)(first + 2)};
    q->table[first + 2] = (struct descriptor){(u64)&r->status, 1, WRITE, 0};
}

u32 does(struct queue *q, struct request *r, u32 kind, u64 sector, void *at, u32 length) {
    prepare(q, r, 0, kind, sector, at, length);
    offer(q, 0, 1);
    return takes(q, 3000, 0) == 0 ? r->status : NO_ANSWER;
}

static u32 zeroes(struct queue *q, u32 kind, u64 sector, u32 sectors, u32 flags) {
    requests[0].header.first = sector;
    requests[0].header.sectors = sectors;
    requests[0].header.flags = flags;
    return does(q, &requests[0], kind, 0, 0, 0);
}

static result block(void) {
    struct device *d = find(BLOCK, 0);
    struct queue *q = &queues[0];
    struct request *r = &requests[0];
    result why = set_up(d, offered(d) & ~EVENT_IDX, queues, 1);
    need(!why, why);
    u64 end = capacity(d);
    fill(data[0], 4096, 1);
    need(does(q, r, OUT, 8, data[0], 4096) == OK, "a write");
    need(does(q, r, FLUSH, 0, 0, 0) == OK, "a flush");
    need(does(q, r, IN, 8, other, 4096) == OK && same(data[0], other, 4096), "a read");
    need(does(q, r, OUT, end - 1, data[0], 512) == OK, "the last sector");
    need(does(q, r, IN, end - 1, other, 512) == OK && same(data[0], other, 512), "the last sector reads otherwise");
    need(does(q, r, IN, end - 1, other, 1024) == IOERR, "a read beyond the end");
    need(does(q, r, OUT, end, data[0], 512) == IOERR, "a write beyond the end");
    need(does(q, r, IN, ~0ull, other, 512) == IOERR, "a sector that overflows");
    need(does(q, r, IN, 0, other, 100) == IOERR, "a part of a sector");
    need(does(q, r, 99, 0, other, 512) == UNSUPP, "a request that is not known");
    need(does(q, r, GET_ID, 0, other, 20) == OK && other[0] && all(other, 20, other[0]), "the serial number");
    need(zeroes(q, ZEROES, 8, 4, 0) == OK, "zeroes");
    need(does(q, r, IN, 8, other, 4096) == OK && all(other, 2048, 0), "zeroes are none");
    need(same(data[0] + 2048, other + 2048, 2048), "zeroes go too far");
    need(zeroes(q, DISCARD, 8, 8, 0) == OK, "a discard");
    need(zeroes(q, DISCARD, end, 8, 0) == IOERR, "a discard beyond the end");
    need(zeroes(q, DISCARD, 8, 8, 1) == UNSUPP, "a discard with the flag to unmap");
    need(zeroes(q, ZEROES, 8, 8, 4) == UNSUPP, "zeroes with a flag that is not known");
    need(zeroes(q, ZEROES, 8, 0xffffffff, 0) == IOERR, "too many zeroes");
    need(!(get8(d->common + STATUS) & NEEDS_RESET), "it wants a reset");
    reset(d);
    return 0;
}

static result by_interrupt(void) {
    struct device *d = find(BLOCK, 0);
    struct queue *q = &queues[0];
    result why = set_up(d, VERSION_1, queues, 1);
    need(!why, why);
    for (u32 i = 1; i <= 20; i++) {
        prepare(q, &requests[0], 0, IN, i, data[0], 512);
        offer(q, 0, 1);
        need(comes(FIRST_VECTOR + 1, i, 3000), "no interrupt");
        need(takes(q, 0, 0) == 0 && requests[0].status == OK, "an interrupt without a request");
    }
    q->avail.flags = 1;
    u32 before = hits[FIRST_VECTOR + 1];
    need(does(q, &requests[0], IN, 0, data[0], 512) == OK, "it does not answer");
    need(!comes(FIRST_VECTOR + 1, before + 1, 20), "an interrupt that nobody wanted");
    reset(d);
    return 0;
}

static result indirect(void) {
    struct device *d = find(BLOCK, 0);
    struct queue *q = &queues[0];
    need(offered(d) & INDIRECT, "not offered");
    result why = set_up(d, VERSION_1 | INDIRECT, queues, 1);
    need(!why, why);
    static struct descriptor table[18] __attribute__((aligned(16)));
    // 16 pieces of 256 bytes.
    for (u32 kind = OUT;; kind = IN) {
        struct request *r = &requests[0];
        u8 *at = kind == OUT ? data[0] : other;
        if (kind == OUT)
            fill(at, 4096, 77);
        r->header.kind = kind;
        r->header.sector = 40;
        r->status = NO_ANSWER;
        table[0] = (struct descriptor){(u64)&r->header, 16, NEXT, 1};
        for (u16 i = 0; i < 16; i++)
            table[i + 1] = (struct descriptor){(u64)at + 256 * i, 256, kind == OUT ? NEXT : NEXT | WRITE, (u16)(i + 2)};
        table[17] = (struct descriptor){(u64)&r->status, 1, WRITE, 0};
        q->table[7] = (struct descriptor){(u64)table, sizeof table, IN_TABLE, 0};
        offer(q, 7, 1);
        u32 length;
        need(takes(q, 3000, &length) == 7 && r->status == OK, "it does not answer");
        need(length == (kind == OUT ? 1 : 4097), "the used length");
        if (kind == IN)
            break;
    }
    need(same(data[0], other, 4096), "it reads otherwise");
    reset(d);
    return 0;
}

static result event_index(void) {
    struct device *d = find(BLOCK, 0);
    struct queue *q = &queues[0];
    need(offered(d) & EVENT_IDX, "not offered");
    result why = set_up(d, VERSION_1 | EVENT_IDX, queues, 1);
    need(!why, why);
    u8 vector = FIRST_VECTOR + 1;
    // An interrupt after the third one, and not before.
    q->avail.used_event = 2;
    for (u32 i = 0; i < 2; i++)
        need(does(q, &requests[0], IN, i, data[0], 512) == OK, "it does not answer");
    need(!comes(vector, 1, 20), "an interrupt too early");
    need(does(q, &requests[0], IN, 0, data[0], 512) == OK && comes(vector, 1, 3000), "no interrupt");
    need(does(q, &requests[0], IN, 0, data[0], 512) == OK && !comes(vector, 2, 20), "an interrupt too late");
    // The device says when it wants a bell.
    u64 end = deadline(3000);
    while (q->used.avail_event != q->avail.index)
        need(tsc() < end, "it does not say where it waits");
    reset(d);
    return 0;
}

static result many_queues(void) {
    struct device *d = find(BLOCK, 0);
    u16 count = get16(d->common + NUM_QUEUES);
    need(count >= 2 && count <= MAX_QUEUES, "too few queues");
    result why = set_up(d, VERSION_1, queues, count);
    need(!why, why);
    for (u32 round = 0; round < 10; round++) {
        for (u16 i = 0; i < count; i++) {
            fill(data[i], 512, (u8)(round * 8 + i));
            prepare(&queues[i], &requests[i], 0, OUT, 100 + i, data[i], 512);
            offer(&queues[i], 0, 1);
        }
        for (u16 i = 0; i < count; i++)
            need(takes(&queues[i], 3000, 0) == 0 && requests[i].status == OK, "a write");
        for (u16 i = 0; i < count; i++) {
            need(does(&queues[i], &requests[i], IN, 100 + (i + 1) % count, other, 512) == OK, "a read");
            need(same(other, data[(i + 1) % count], 512), "another's data");
            need(comes((u8)(FIRST_VECTOR + 1 + i), 1, 3000), "a queue without its interrupt");
        }
    }
    reset(d);
    return 0;
}

static volatile u32 wrong;

// For each processor: its own queue, its own sectors.
static void drive_own(u64 index) {
    struct queue *q = &queues[index];
    for (u32 i = 0; i < 30; i++) {
        fill(data[index], 512, (u8)(i * 8 + index));
        u32 value = *(u32 *)data[index];
        if (does(q, &requests[index], OUT, 200 + index, data[index], 512) != OK)
            wrong = 1;
        *(u32 *)data[index] = ~value;
        if (does(q, &requests[index], IN, 200 + index, data[index], 512) != OK || *(u32 *)data[index] != value)
            wrong = 2;
    }
}

static result many_processors(void) {
    if (start_cpus() < 2)
        return "skip: no second processor starts";
    struct device *d = find(BLOCK, 0);
    u16 count = get16(d->common + NUM_QUEUES);
    if (count > cpus)
        count = (u16)cpus;
    result why = set_up(d, VERSION_1, queues, count);
    need(!why, why);
    wrong = 0;
    for (u32 cpu = 1; cpu < count; cpu++)
        run_on(cpu, drive_own, cpu);
    drive_own(0);
    for (u32 cpu = 1; cpu < count; cpu++)
        need(has_ended(cpu, 10000), "a processor does not end");
    need(!wrong, wrong == 1 ? "a request" : "another's data");
    reset(d);
    return 0;
}

static result read_only_disk(void) {
    struct device *d = find(BLOCK, 1);
    need(d, "there is no second disk");
    need(offered(d) & BLK_RO, "it does not say so");
    result why = set_up(d, VERSION_1 | BLK_RO, queues, 1);
    need(!why, why);
    need(does(&queues[0], &requests[0], IN, 0, other, 512) == OK, "a read");
    need(does(&queues[0], &requests[0], OUT, 0, other, 512) == IOERR, "a write");
    need(zeroes(&queues[0], ZEROES, 0, 8, 0) != OK, "zeroes");
    reset(d);
    return 0;
}

static result resize(void) {
    struct device *d = find(BLOCK, 0);
    result why = set_up(d, VERSION_1, queues, 1);
    need(!why, why);
    u8 generation = get8(d->common + GENERATION);
    u64 before = capacity(d);
    need(get8(d->common + GENERATION) == generation, "the generation counts without a change");
    put8(d->config, 1);
    need(capacity(d) == before, "the capacity can be written");
    hits[FIRST_VECTOR] = 0;
    print("resize me\n");
    need(comes(FIRST_VECTOR, 1, 20000), "no interrupt for a change");
    need(capacity(d) > before, "no change");
    need(get8(d->common + GENERATION) != generation, "the generation stays");
    need(does(&queues[0], &requests[0], IN, capacity(d) - 1, other, 512) == OK, "the new end");
    reset(d);
    return 0;
}

static const struct {
    const char *name;
    result (*run)(void);
} CASES[] = {
    {"enumeration", enumeration},
    {"read-only registers", read_only},
    {"windows", windows},
    {"access by configuration space", access},
    {"features", features},
    {"queue rules", queue_rules},
    {"broken ring", broken_ring},
    {"entropy", entropy},
    {"msix", msix},
    {"block", block},
    {"block by interrupt", by_interrupt},
    {"indirect descriptors", indirect},
    {"event index", event_index},
    {"many queues", many_queues},
    {"read-only disk", read_only_disk},
    {"interrupts to other processors", other_processors},
    {"many processors", many_processors},
};

void suite_main(void) {
    if (word_is("suite")) {
        for (u32 i = 0; i < sizeof CASES / sizeof *CASES; i++) {
            result why = CASES[i].run();
            if (why && why[0] == 's' && why[1] == 'k') {
                print(why);
                print(": ");
                print(CASES[i].name);
                print("\n");
            } else
                report(CASES[i].name, why);
        }
        next_word();
        if (word_is("resize"))
            report("resize", resize());
        print("done ");
        print_dec(passed);
        print(" ");
        print_dec(failed);
        print("\n");
        return;
    }
    result why = find_devices();
    if (why) {
        print(why);
        print("\n");
        return;
    }
    // `iops DEPTH COUNT` or `iops DEPTH SECONDSs`: random reads of 4 KiB. `mbps DEPTH …`: reads of 1 MiB, in order.
    int iops = word_is("iops"), mbps = word_is("mbps");
    if (iops || mbps) {
        u32 depth = (u32)number(next_word());
        const char *amount = next_word();
        u64 count = number(amount);
        while (*amount >= '0' && *amount <= '9')
            amount++;
        bench(find(BLOCK, 0), depth, count, *amount == 's', iops ? 4096 : 1 << 20, iops);
    }
    // `bell COUNT`: doorbells without anything behind them.
    if (word_is("bell"))
        bench_bell(find(BLOCK, 0), number(next_word()));
    // `hostile SEED COUNT`, or with `wild` at the end: then it may end itself by its own interrupts.
    if (word_is("hostile")) {
        u64 seed = number(next_word()), count = number(next_word());
        next_word();
        hostile(seed, count, word_is("wild"));
    }
    print("not understood\n");
}
