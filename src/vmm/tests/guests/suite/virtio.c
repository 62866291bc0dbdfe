#include "virtio.h"

struct device devices[MAX_DEVICES];
u32 device_count;

u32 config_read(u8 device, u32 reg) { return get32(ECAM + ((u64)device << 15) + reg); }
void config_write(u8 device, u32 reg, u32 value) { put32(ECAM + ((u64)device << 15) + reg, value); }
void config_write16(u8 device, u32 reg, u16 value) { put16(ECAM + ((u64)device << 15) + reg, value); }

u32 port_read(u8 device, u32 reg) {
    out32(0xcf8, 0x80000000 | (u32)device << 11 | (reg & 0xfc));
    return in32(0xcfc);
}

static result look(struct device *d) {
    u32 at = config_read(d->number, 0x34) & 0xff, seen = 0;
    if (!(config_read(d->number, 4) >> 16 & 0x10))
        return "no list of capabilities";
    config_write16(d->number, 4, 0);
    config_write(d->number, 0x10, 0xffffffff);
    d->bar_size = ~(config_read(d->number, 0x10) & ~15u) + 1;
    config_write(d->number, 0x10, (u32)d->bar);
    config_write16(d->number, 4, 6);
    for (u32 left = 48; at; left--) {
        u32 head = config_read(d->number, at);
        if (!left || at & 3 || at < 0x40)
            return "a list of capabilities that is none";
        if ((head & 0xff) == 0x11) {
            d->msix = at;
            d->vectors = (u16)((head >> 16 & 0x7ff) + 1);
            d->table = d->bar + (config_read(d->number, at + 4) & ~7u);
            d->pending = d->bar + (config_read(d->number, at + 8) & ~7u);
            seen |= 1 << 6;
        } else if ((head & 0xff) == 9) {
            u32 kind = head >> 24, bar = config_read(d->number, at + 4) & 0xff;
            u32 offset = config_read(d->number, at + 8), length = config_read(d->number, at + 12);
            if (kind < 5 && (bar || !length || offset + length > d->bar_size))
                return "a structure outside its window";
            u64 place = d->bar + offset;
            if (kind == 1)
                d->common = place;
            if (kind == 2)
                d->notify = place, d->notify_step = config_read(d->number, at + 16);
            if (kind == 3)
                d->isr = place;
            if (kind == 4)
                d->config = place;
            if (kind == 5)
                d->access = at;
            seen |= 1u << kind;
        }
        at = head >> 8 & 0xff;
    }
    return seen == 0x7e ? 0 : "a capability is missing";
}

result find_devices(void) {
    device_count = 0;
    for (u8 n = 1; n < 32; n++) {
        u32 id = config_read(n, 0);
        if ((id & 0xffff) != 0x1af4)
            continue;
        struct device *d = &devices[device_count++];
        d->number = n;
        d->kind = (u16)((id >> 16) - 0x1040);
        d->bar = config_read(n, 0x10) & ~15u;
        result why = look(d);
        if (why)
            return why;
    }
    return device_count ? 0 : "no device";
}

struct device *find(u16 kind, u32 nth) {
    for (u32 i = 0; i < device_count; i++)
        if (devices[i].kind == kind && !nth--)
            return &devices[i];
    return 0;
}

u64 offered(struct device *d) {
    put32(d->common + DEVICE_SELECT, 0);
    u64 bits = get32(d->common + DEVICE_FEATURES);
    put32(d->common + DEVICE_SELECT, 1);
    return bits | (u64)get32(d->common + DEVICE_FEATURES) << 32;
}

void reset(struct device *d) {
    put8(d->common + STATUS, 0);
    while (get8(d->common + STATUS))
        rest();
}

int negotiate(struct device *d, u64 features) {
    reset(d);
    put8(d->common + STATUS, ACKNOWLEDGE);
    put8(d->common + STATUS, ACKNOWLEDGE | DRIVER);
    for (u32 half = 0; half < 2; half++) {
        put32(d->common + DRIVER_SELECT, half);
        put32(d->common + DRIVER_FEATURES, (u32)(features >> (32 * half)));
    }
    put8(d->common + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    d->features = features;
    return get8(d->common + STATUS) & FEATURES_OK;
}

void set_vector(struct device *d, u16 entry, u32 cpu, u8 vector) {
    u64 at = d->table + 16 * entry;
    put32(at, 0xfee00000 | cpu << 12);
    put32(at + 4, 0);
    put32(at + 8, vector);
}

void mask(struct device *d, u16 entry, u32 masked) { put32(d->table + 16 * entry + 12, masked); }

int set_queue(struct device *d, u16 number, struct queue *q, u16 size, u16 entry) {
    for (u32 *word = (u32 *)&q->avail; word < (u32 *)&q->bell; word++)
        *word = 0;
    q->size = size;
    q->seen = 0;
    q->number = number;
    q->vector = entry;
    put16(d->common + SELECT, number);
    if (get16(d->common + SIZE) < size)
        return 0;
    put16(d->common + SIZE, size);
    put16(d->common + VECTOR, entry);
    u64 parts[] = {(u64)q->table, (u64)&q->avail, (u64)&q->used};
    for (u32 i = 0; i < 3; i++) {
        put32(d->common + DESC + 8 * i, (u32)parts[i]);
        put32(d->common + DESC + 8 * i + 4, (u32)(parts[i] >> 32));
    }
    q->bell = d->notify + get16(d->common + NOTIFY_OFF) * d->notify_step;
    put16(d->common + ENABLE, 1);
    return get16(d->common + VECTOR) == entry && get16(d->common + SIZE) == size && get16(d->common + ENABLE) == 1;
}

result set_up(struct device *d, u64 features, struct queue *queues, u16 count) {
    if (!negotiate(d, features))
        return "the features are refused";
    config_write16(d->number, d->msix + 2, 1 << 15);
    put16(d->common + CONFIG_VECTOR, 0);
    for (u16 entry = 0; entry < d->vectors && entry < 16; entry++) {
        set_vector(d, entry, 0, (u8)(FIRST_VECTOR + entry));
        mask(d, entry, 0);
    }
    for (u16 i = 0; i < count; i++)
        if (!set_queue(d, i, &queues[i], 64, (u16)(i + 1)))
            return "a queue is refused";
    put8(d->common + STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    if (get8(d->common + STATUS) != (ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK))
        return "the device is not ready";
    // What an earlier case left on its way.
    comes(0, 1, 3);
    for (u32 vector = FIRST_VECTOR; vector <= LAST_VECTOR; vector++)
        hits[vector] = 0;
    return 0;
}

void offer(struct queue *q, u16 head, int kick) {
    q->avail.ring[q->avail.index % q->size] = head;
    barrier();
    q->avail.index++;
    fence();
    if (kick)
        put16(q->bell, q->number);
}

int takes(struct queue *q, u64 ms, u32 *length) {
    u64 end = deadline(ms);
    while (q->used.index == q->seen) {
        if (tsc() > end)
            return -1;
        rest();
    }
    barrier();
    u32 at = q->seen++ % q->size;
    if (length)
        *length = q->used.ring[at].length;
    return (int)q->used.ring[at].head;
}
