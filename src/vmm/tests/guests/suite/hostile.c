// A guest that does what it likes: registers, descriptors, ports and configuration space at random, half of it with rings
// that the device has accepted. What it must not do is end its own machine by the ports that are there for that.

#include "block.h"

static struct queue queues[MAX_QUEUES];
static int wild;

static u64 any(u64 *s) {
    u32 r = random32(s);
    switch (r & 7) {
    case 0: return 1ull << (r >> 8 & 63);
    case 1: return (1ull << (r >> 8 & 63)) - 1;
    case 2: return (u64)random32(s) << 32 | random32(s);
    case 3: return ~(u64)(r >> 16 & 255);
    default: return r >> 8 & 0xff;
    }
}

static void hostile_ring(u64 *s, struct device *d, u16 count) {
    struct queue *q = &queues[random32(s) % count];
    u32 r = random32(s);
    struct descriptor *e = &q->table[r >> 8 & 63];
    switch (r & 7) {
    case 0:
        *e = (struct descriptor){any(s), (u32)any(s), (u16)(r >> 16), (u16)any(s)};
        break;
    case 1: // a loop, or an indirect table within itself
        *e = (struct descriptor){(u64)q->table, 1024, r & 256 ? IN_TABLE : NEXT, (u16)(e - q->table)};
        break;
    case 2:
        *e = (struct descriptor){(u64)&queues[7].table, 16 << (r >> 16 & 3), (u16)(r >> 24 & 3), (u16)(r >> 20 & 63)};
        break;
    case 3:
        q->avail.index = (u16)any(s);
        break;
    case 4:
        put16(q->bell, (u16)r);
        break;
    case 5:
        for (u32 i = 0; i < 4; i++)
            put16(d->notify + (any(s) & 0xffe), (u16)r);
        break;
    default:
        offer(q, (u16)(r >> 8 & 127), r & 128);
    }
}

static void hostile_register(u64 *s, struct device *d) {
    u32 r = random32(s);
    u64 at;
    switch (r & 7) {
    case 0: at = d->common + (r >> 8 & 63); break;
    case 1: at = d->table + (r >> 8 & 127); break;
    case 2: at = d->config + (r >> 8 & 63); break;
    case 3: at = d->bar + (r >> 8 & 0x7fff); break;
    case 4: // configuration space, but for the window's place
        at = ECAM + ((u64)d->number << 15) + (r >> 8 & 0xff);
        if ((at & 0xfc) == 0x10 || (at & 0xfc) == 4)
            return;
        break;
    case 5: { // the window: onto memory, ECAM, the IOAPIC, another's window, nowhere, and back
        static const u32 places[] = {0x00100000, 0xe0000000, 0xfec00000, 0xfee00000, 0xc0000000, 0xc0008000, 0, 0xfffffff0};
        config_write(d->number, 0x10, places[r >> 8 & 7]);
        (void)get32(d->common);
        config_write(d->number, 0x10, (u32)d->bar);
        config_write16(d->number, 4, 6);
        return;
    }
    case 6: { // ports, but for those that end or slow the machine
        u16 port = (u16)(r >> 8);
        if ((port & 0xfff8) == 0x60 || (port & 0xfff8) == 0x3f8 || (port & 0xfff8) == 0xcf8 || (port & 0xfff0) == 0x600)
            return;
        out8(port, (u8)any(s));
        (void)in32(port);
        return;
    }
    default: at = d->notify + (r >> 8 & 31); break;
    }
    u32 in_entry = (u32)(at - d->table) & 15;
    if (at - d->table < 0x1000 && !wild && (in_entry == 8 || in_entry == 0)) {
        // A message of the kind that an interrupt is, to a processor that is there or not.
        put32(at, in_entry ? 0x20 + (r >> 16 & 0xbf) : 0xfee00000 | (r & 0xff000) );
        return;
    }
    switch (r >> 28 & 3) {
    case 0: put8(at, (u8)any(s)); break;
    case 1: put16(at, (u16)any(s)); break;
    default: put32(at, (u32)any(s));
    }
}

void hostile(u64 seed, u64 count, int is_wild) {
    wild = is_wild;
    u64 state = seed * 0x9e3779b97f4a7c15ull + 1, broke = 0, refused = 0;
    for (u64 i = 0; i < count;) {
        struct device *d = &devices[random32(&state) % device_count];
        u16 rings = get16(d->common + NUM_QUEUES);
        if (rings > 2)
            rings = 2;
        result why = set_up(d, VERSION_1 | (random32(&state) & 1 ? INDIRECT | EVENT_IDX : 0), queues, rings);
        if (why && !refused++) {
            print(why);
            print("\n");
        }
        for (u32 n = 0; n < 40; n++, i += 2) {
            hostile_ring(&state, d, rings);
            if (n & 1)
                hostile_ring(&state, d, rings);
        }
        broke += !!(get8(d->common + STATUS) & NEEDS_RESET);
        for (u32 n = 0; n < 40; n++, i++)
            hostile_register(&state, d);
        config_write(d->number, 0x10, (u32)d->bar);
        config_write16(d->number, 4, 6);
        reset(d);
    }
    print("hostile ");
    print_dec(count);
    print(" broke ");
    print_dec(broke);
    print(" refused ");
    print_dec(refused);
    print("\n");
    power_off();
}
