// What a guest without an operating system and without a library needs: ports, text, time, other processors, interrupts.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef const char *result; // why not; or 0

#define NOINLINE __attribute__((noinline))

static inline void out8(u16 port, u8 value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }
static inline void out16(u16 port, u16 value) { __asm__ volatile("outw %0, %1" ::"a"(value), "Nd"(port)); }
static inline void out32(u16 port, u32 value) { __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port)); }
static inline u8 in8(u16 port) { u8 v; __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline u16 in16(u16 port) { u16 v; __asm__ volatile("inw %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline u32 in32(u16 port) { u32 v; __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline u8 get8(u64 at) { u8 v; __asm__ volatile("movb %1, %0" : "=q"(v) : "m"(*(volatile u8 *)at)); return v; }
static inline u16 get16(u64 at) { u16 v; __asm__ volatile("movw %1, %0" : "=r"(v) : "m"(*(volatile u16 *)at)); return v; }
static inline u32 get32(u64 at) { u32 v; __asm__ volatile("movl %1, %0" : "=r"(v) : "m"(*(volatile u32 *)at)); return v; }
static inline void put8(u64 at, u8 v) { __asm__ volatile("movb %1, %0" : "=m"(*(volatile u8 *)at) : "q"(v)); }
static inline void put16(u64 at, u16 v) { __asm__ volatile("movw %1, %0" : "=m"(*(volatile u16 *)at) : "r"(v)); }
static inline void put32(u64 at, u32 v) { __asm__ volatile("movl %1, %0" : "=m"(*(volatile u32 *)at) : "r"(v)); }
static inline void fence(void) { __asm__ volatile("lock orl $0, (%%rsp)" ::: "memory"); }
static inline void barrier(void) { __asm__ volatile("" ::: "memory"); }
static inline void rest(void) { __asm__ volatile("pause" ::: "memory"); }
static inline u64 tsc(void) { u32 lo, hi; __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi)); return (u64)hi << 32 | lo; }
static inline void wrmsr(u32 msr, u64 v) { __asm__ volatile("wrmsr" ::"c"(msr), "a"((u32)v), "d"((u32)(v >> 32))); }
static inline void interrupts_on(void) { __asm__ volatile("sti; nop" ::: "memory"); }
static inline void interrupts_off(void) { __asm__ volatile("cli" ::: "memory"); }

// Text on the serial line.
void put(char c);
void print(const char *text);
void print_hex(u64 value);
void print_dec(u64 value);
void power_off(void);

// Time, from ACPI's timer: cycles of a millisecond.
extern u64 cycles_ms;
static inline u64 deadline(u64 ms) { return tsc() + ms * cycles_ms; }

// Interrupts: how often each vector came, and where the last time.
#define FIRST_VECTOR 0x20
#define LAST_VECTOR 0x3e
extern volatile u32 hits[64];
extern volatile u32 hit_by[64];
// Wait until the vector has come so often, or for so many milliseconds. Interrupts are on meanwhile.
int comes(u8 vector, u32 times, u64 ms);
#define APIC 0xfee00000ull
u32 apic_id(void);

// Other processors.
#define MAX_CPUS 9
extern u32 cpus; // that have started, this one among them
u32 start_cpus(void);
void run_on(u32 cpu, void (*what)(u64), u64 argument);
int has_ended(u32 cpu, u64 ms);
// Ring 3, which uses no ports (some hosts refuse them there): it ends by the first exception, upon which `after` runs in ring 0.
void in_user_mode(void (*function)(void), void *stack_end, void (*after)(void)) __attribute__((noreturn));
#define leave_user_mode() __asm__ volatile("hlt")

// The command line.
extern const char *words;
int word_is(const char *word);
const char *next_word(void);
u64 number(const char *text);

static inline u32 random32(u64 *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (u32)(*state >> 16);
}
