# The smallest guest: says one line on the serial line and rests. By PVH's entry: 32 bits, flat, no paging, interrupts off.
        .intel_syntax noprefix
        .code32

        .section .note.pvh, "a", @note
        .long 4, 4, 18
        .asciz "Xen"
        .long _start

        .text
        .global _start
_start: mov dx, 0x3f8
        mov esi, offset text
        mov ecx, offset length
        cld
1:      lodsb
        out dx, al
        loop 1b
2:      hlt
        jmp 2b

text:   .ascii "ready\n"
        .set length, . - text
