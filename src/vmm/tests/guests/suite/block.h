// Requests to a block device (virtio 1.2 §5.2.6).
#pragma once

#include "virtio.h"

enum { BLOCK = 2, RNG = 4 };
enum { IN = 0, OUT = 1, FLUSH = 4, GET_ID = 8, DISCARD = 11, ZEROES = 13 };
enum { OK = 0, IOERR = 1, UNSUPP = 2, NO_ANSWER = 0xff };

struct request {
    struct {
        u32 kind, reserved;
        u64 sector;
        // Of a discard.
        u64 first;
        u32 sectors, flags;
    } header;
    volatile u8 status;
};

// Put a request on descriptors 3 * slot and following, with its data there.
void prepare(struct queue *q, struct request *r, u32 slot, u32 kind, u64 sector, void *data, u32 length);
// Put it, offer it and wait. Its status.
u32 does(struct queue *q, struct request *r, u32 kind, u64 sector, void *data, u32 length);

// Benches (bench.c): they do not come back.
void bench(struct device *d, u32 depth, u64 amount, int seconds, u32 bytes, int random);
void bench_bell(struct device *d, u64 count);
// Hostile guest (hostile.c).
void hostile(u64 seed, u64 count, int wild);
