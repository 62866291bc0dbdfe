/* A boot sector. It tells by the firmware's screen what it finds: the drive that it was read from, the disk's second sector,
   the firmware's map of memory, where ACPI's and SMBIOS's tables begin, and what becomes of the firmware if it is written
   to. Then it switches off by ACPI's register, or, if the second sector begins with an R, asks for a reset. */

        .code16
        .text
        .globl _start
_start:
        ljmp    $0, $begin
begin:
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7c00, %sp
        cld
        movb    %dl, drive
        movw    $said_drive, %si
        call    say
        movzbl  %dl, %eax
        call    number

        /* The second sector (Enhanced Disk Drive, int 0x13 function 0x42). */
        movw    $packet, %si
        movb    drive, %dl
        movb    $0x42, %ah
        int     $0x13
        movw    $said_failed, %si
        jc      fail
        movw    $said_sector, %si
        call    say
        movw    $second, %si
        call    say
        call    line

        /* The map of memory (int 0x15 function 0xe820). */
        xorl    %ebx, %ebx
next:   movl    $0xe820, %eax
        movl    $0x534d4150, %edx
        movl    $24, %ecx
        movw    $entry, %di
        int     $0x15
        jc      mapped
        movw    $said_map, %si
        call    say
        movl    entry, %eax
        call    digits
        movl    entry + 8, %eax
        call    digits
        movl    entry + 16, %eax
        call    number
        testl   %ebx, %ebx
        jnz     next
mapped:
        movw    $said_acpi, %si
        movl    $0x20445352, %ebp
        call    seek
        movw    $said_smbios, %si
        movl    $0x5f4d535f, %ebp
        call    seek

        /* Copy the sector's first four bytes there, and back (int 0x15 function 0x87). */
        movw    $said_rom, %si
        call    say
        movb    second, %bl
        call    move
        movl    from, %eax
        xchgl   %eax, to
        movl    %eax, from
        movl    from + 4, %eax
        xchgl   %eax, to + 4
        movl    %eax, from + 4
        call    move
        movl    second, %eax
        call    number

        /* SeaBIOS holds the last characters back, in case that they are drawn anew. */
        movw    $said_sector, %si
        call    say
        cmpb    $'R', %bl
        je      reset
        movw    $0x604, %dx
        movw    $0x3400, %ax
        outw    %ax, %dx
reset:  movw    $0xcf9, %dx
        movb    $6, %al
        outb    %al, %dx
fail:   call    say
halt:   hlt
        jmp     halt

move:   movw    $table, %si
        movw    $2, %cx
        movb    $0x87, %ah
        int     $0x15
        ret

/* Say %si, and where in the F segment %ebp stands. */
seek:   call    say
        pushw   $0xf000
        popw    %es
        xorw    %di, %di
1:      cmpl    %ebp, %es:(%di)
        je      2f
        addw    $16, %di
        jnz     1b
2:      movzwl  %di, %eax
        pushw   $0
        popw    %es

/* Say %eax in hexadecimal digits, and end the line. */
number: call    digits
line:   movb    $'\n', %al
        jmp     char

/* Say a space and %eax in hexadecimal digits. */
digits: pushl   %eax
        movb    $' ', %al
        call    char
        popl    %eax
        movw    $8, %cx
1:      roll    $4, %eax
        pushl   %eax
        andb    $15, %al
        cmpb    $10, %al
        sbbb    $0x69, %al
        das
        call    char
        popl    %eax
        loop    1b
        ret

say:    lodsb
        testb   %al, %al
        jz      1f
        call    char
        jmp     say
1:      ret

/* Teletype output (int 0x10 function 0x0e). */
char:   pushal
        movb    $0x0e, %ah
        xorw    %bx, %bx
        int     $0x10
        popal
        cmpb    $'\n', %al
        jne     1f
        movb    $'\r', %al
        jmp     char
1:      ret

drive:  .byte   0
packet: .byte   16, 0
        .word   1
        .word   second, 0
        .quad   1
/* Null, the table itself, source, destination, code, stack. */
table:  .quad   0, 0
from:   .quad   0x000093008000ffff
to:     .quad   0xff0093fffff0ffff
        .quad   0, 0
said_drive:     .asciz "drive"
said_failed:    .asciz "cannot read\n"
said_sector:    .asciz "sector "
said_map:       .asciz "map"
said_acpi:      .asciz "acpi"
said_smbios:    .asciz "smbios"
said_rom:       .asciz "rom"

        .org    510
        .word   0xaa55

        .equ    second, 0x8000
        .equ    entry, 0x9000
