/* The first process of a small Linux guest that tries devices: its last argument says which. Without a C library. */

typedef unsigned long word;

enum { READ, WRITE, OPEN, CLOSE, MMAP = 9, MUNMAP = 11, NANOSLEEP = 35, SOCKET = 41, CONNECT, ACCEPT,
       SHUTDOWN = 48, BIND, LISTEN, SYSINFO = 99, REBOOT = 169 };

static long call(long number, word a, word b, word c, word d, word e, word f) {
    long result;
    register word r10 __asm__("r10") = d;
    register word r8 __asm__("r8") = e;
    register word r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
#define CALL3(number, a, b, c) call(number, (word)(a), (word)(b), (word)(c), 0, 0, 0)

static word length(const char *text) {
    word n = 0;
    while (text[n]) n++;
    return n;
}

static void put(int file, const char *text) { CALL3(WRITE, file, text, length(text)); }

static void number(word value) {
    char text[24], *at = text + sizeof text;
    *--at = 0;
    *--at = '\n';
    do *--at = '0' + value % 10; while (value /= 10);
    put(1, at);
}

static void off(void) {
    CALL3(REBOOT, 0xfee1dead, 672274793, 0x4321fedc);
    for (;;) call(NANOSLEEP, 0, 0, 0, 0, 0, 0);
}

static void fail(const char *what) {
    put(1, "FAILED ");
    put(1, what);
    put(1, "\n");
    off();
}

static void nap(long milliseconds) {
    long time[2] = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    CALL3(NANOSLEEP, time, 0, 0);
}

static word free_pages(void) {
    /* uptime, three loads, total, free */
    word info[14] = {0};
    CALL3(SYSINFO, info, 0, 0);
    return info[5] >> 12;
}

/* Nearly all memory is used and then free, so that a balloon must take some of that. The machine is too small for free page
   reports: Linux makes none while less is free than would fill 32 of its largest blocks. */
static void balloon(void) {
    word before = free_pages(), pages = before - 2048;
    char *memory = (char *)call(MMAP, 0, pages << 12, 3, 0x22, -1, 0);
    if ((long)memory < 0) fail("mmap");
    for (word page = 0; page < pages; page++) memory[page << 12] = 1;
    CALL3(MUNMAP, memory, pages << 12, 0);
    put(1, "USED\n");
    while (free_pages() + 2048 > before) nap(50);
    put(1, "INFLATED\n");
    /* Up to an eighth of all pages may wait in the processor's own lists. */
    for (word pages_now, inflated = free_pages(), count = 0; (pages_now = free_pages()) < inflated + 1536; count++) {
        if (count % 64 == 0) number(pages_now);
        nap(50);
    }
    put(1, "DEFLATED\n");
    /* Memory that was given back can be used again. */
    memory = (char *)call(MMAP, 0, 1024 << 12, 3, 0x22, -1, 0);
    for (word page = 0; page < 1024; page++)
        if (memory[page << 12]++) fail("memory is not zero");
    put(1, "USED-AGAIN\n");
    for (;;) nap(1000);
}

#define PAGES 3072ul

/* Memory that is used, then free, then used again. */
static void free_memory(void) {
    for (int round = 0; round < 2; round++) {
        char *memory = (char *)call(MMAP, 0, PAGES << 12, 3, 0x22, -1, 0);
        if ((long)memory < 0) fail("mmap");
        for (word page = 0; page < PAGES; page++)
            if (memory[page << 12]++) fail("memory is not zero");
        /* What was free before is reported by then. */
        if (round == 0) nap(6000);
        put(1, round == 0 ? "USED\n" : "USED-AGAIN\n");
        CALL3(MUNMAP, memory, PAGES << 12, 0);
        put(1, "FREE\n");
        nap(15000);
    }
    for (;;) nap(1000);
}

static void console(void) {
    char line[64];
    int file = CALL3(OPEN, "/dev/hvc0", 2, 0);
    if (file < 0) fail("hvc0");
    put(file, "HELLO-FROM-HVC\n");
    for (;;) {
        long n = CALL3(READ, file, line, sizeof line - 1);
        if (n <= 0) fail("read");
        line[n] = 0;
        if (line[0] == 'q') break;
        put(file, "HEARD ");
        put(file, line);
    }
    off();
}

struct address {
    unsigned short family, reserved;
    unsigned port, cid, rest;
};

#define FAMILY 40
#define BYTES (192 * 1024)
static char buffer[8192];

static int dial(unsigned port) {
    struct address address = {FAMILY, 0, port, 2, 0};
    int file = CALL3(SOCKET, FAMILY, 1, 0);
    if (file < 0) fail("socket");
    return CALL3(CONNECT, file, &address, sizeof address) < 0 ? -1 : file;
}

static void vsock(void) {
    struct address address = {FAMILY, 0, 77, 0xffffffff, 0};
    int door = CALL3(SOCKET, FAMILY, 1, 0);
    if (CALL3(BIND, door, &address, sizeof address) < 0 || CALL3(LISTEN, door, 4, 0) < 0) fail("listen");

    if (dial(999) >= 0) fail("nobody listens there");
    put(1, "REFUSED\n");

    /* More than either side holds, there and back. */
    int file = dial(1234);
    if (file < 0) fail("connect");
    word sent = 0, sum = 0;
    while (sent < BYTES) {
        for (word i = 0; i < sizeof buffer; i++) buffer[i] = (char)((sent + i) % 251);
        long n = CALL3(WRITE, file, buffer, sizeof buffer);
        if (n <= 0) fail("write");
        sent += n;
    }
    if (CALL3(SHUTDOWN, file, 1, 0) < 0) fail("shutdown");
    for (;;) {
        long n = CALL3(READ, file, buffer, sizeof buffer);
        if (n < 0) fail("read");
        if (n == 0) break;
        for (long i = 0; i < n; i++)
            if (buffer[i] != (char)((sum + i) % 241)) fail("other bytes");
        sum += n;
    }
    if (sum != BYTES) fail("fewer bytes");
    CALL3(CLOSE, file, 0, 0);
    put(1, "ECHOED\n");

    for (;;) {
        file = CALL3(ACCEPT, door, 0, 0);
        if (file < 0) fail("accept");
        put(1, "ACCEPTED\n");
        for (;;) {
            long n = CALL3(READ, file, buffer, sizeof buffer);
            if (n <= 0) break;
            if (buffer[0] == 'q') off();
            CALL3(WRITE, file, buffer, n);
        }
        CALL3(CLOSE, file, 0, 0);
        put(1, "CLOSED\n");
    }
}

__attribute__((used)) static void run(word *stack) {
    const char *what = (const char *)stack[stack[0]];
    put(1, "HELLO\n");
    if (what[0] == 'b') balloon();
    if (what[0] == 'f') free_memory();
    if (what[0] == 'c') console();
    if (what[0] == 'v') vsock();
    off();
}

__asm__(".globl _start\n_start: mov %rsp, %rdi\nand $-16, %rsp\ncall run\n");
