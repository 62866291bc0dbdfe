// Virtio over PCI (virtio 1.2 §4.1), as a driver sees it.
#pragma once

#include "base.h"

#define ECAM 0xe0000000ull
#define MAX_DEVICES 32
#define MAX_QUEUES 8
#define NO_VECTOR 0xffff

// Common configuration.
enum {
    DEVICE_SELECT = 0, DEVICE_FEATURES = 4, DRIVER_SELECT = 8, DRIVER_FEATURES = 12, CONFIG_VECTOR = 16, NUM_QUEUES = 18,
    STATUS = 20, GENERATION = 21, SELECT = 22, SIZE = 24, VECTOR = 26, ENABLE = 28, NOTIFY_OFF = 30, DESC = 32, AVAIL = 40,
    USED = 48,
};
// Device status.
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8, NEEDS_RESET = 64 };
// Features.
#define VERSION_1 (1ull << 32)
#define EVENT_IDX (1ull << 29)
#define INDIRECT (1ull << 28)
#define BLK_RO (1ull << 5)
// Descriptors.
enum { NEXT = 1, WRITE = 2, IN_TABLE = 4 };

struct descriptor {
    u64 at;
    u32 length;
    u16 flags, next;
};

// A ring of at most 64 descriptors, and what the driver knows of it.
struct queue {
    struct descriptor table[64] __attribute__((aligned(4096)));
    struct {
        volatile u16 flags, index, ring[64], used_event;
    } avail __attribute__((aligned(64)));
    struct {
        volatile u16 flags, index;
        volatile struct { u32 head, length; } ring[64];
        volatile u16 avail_event;
    } used __attribute__((aligned(64)));
    u64 bell;
    u16 size, seen;
    u16 number, vector;
};

struct device {
    u8 number; // on bus 0
    u16 kind;
    u64 bar;
    u32 bar_size;
    u64 common, isr, config, table, pending;
    u64 notify;
    u32 notify_step;
    u32 msix, access; // where their capabilities are
    u16 vectors;
    u64 features; // agreed upon
};

extern struct device devices[MAX_DEVICES];
extern u32 device_count;

u32 config_read(u8 device, u32 reg);
void config_write(u8 device, u32 reg, u32 value);
void config_write16(u8 device, u32 reg, u16 value);
u32 port_read(u8 device, u32 reg);
result find_devices(void);
struct device *find(u16 kind, u32 nth);

u64 offered(struct device *d);
// From reset to FEATURES_OK with these of the offered features. 0: refused.
int negotiate(struct device *d, u64 features);
void set_vector(struct device *d, u16 entry, u32 cpu, u8 vector);
void mask(struct device *d, u16 entry, u32 masked);
// A fresh ring; its interrupts come by this entry of the table.
int set_queue(struct device *d, u16 number, struct queue *q, u16 size, u16 entry);
// All of it: features, interrupts (entry n is vector 0x20 + n), `count` queues of 64, DRIVER_OK.
result set_up(struct device *d, u64 features, struct queue *queues, u16 count);
void reset(struct device *d);

// Make the chain at `head` available; ring the bell if `kick`.
void offer(struct queue *q, u16 head, int kick);
// Wait until another chain is used: its head, or -1.
int takes(struct queue *q, u64 ms, u32 *length);
