# The way of a C guest from PVH's entry (32 bits, flat, no paging) to 64 bits, on the boot processor and on others; interrupt
# stubs; and the way down to ring 3. What is emulated on a host without hardware virtualisation shall be little: there are no
# SSE, no `syscall`, no `int`.
        .intel_syntax noprefix

        .set PAGES, 0x8a000            # the page tables: below the end of conventional memory, zero at each boot
        .set TRAMPOLINE, 0x8000

        .section .note.pvh, "a", @note
        .long 4, 4, 18
        .asciz "Xen"
        .long _start

        .section .text.start, "ax"
        .code32
        .global _start
_start: cld
        mov esp, offset boot_stack_end
        mov ebp, ebx
        # 4 GiB one to one in pages of 2 MiB, for ring 3, too: PML4, PDPT, four page directories.
        mov edi, PAGES
        lea eax, [edi + 0x1007]
        mov [edi], eax
        mov ecx, 4
        lea eax, [edi + 0x2007]
        lea edx, [edi + 0x1000]
1:      mov [edx], eax
        add eax, 0x1000
        add edx, 8
        loop 1b
        lea edx, [edi + 0x2000]
        mov ecx, 2048
        mov eax, 0x87
2:      mov [edx], eax
        add eax, 0x200000
        add edx, 8
        loop 2b
        call long_mode
        .byte 0xea
        .long start64
        .word 0x08

# Paging and long mode on. The tables are there; the descriptors are loaded. EBP stays.
long_mode:
        lgdt [gdt_pointer]
        mov eax, cr4
        or eax, 1 << 5
        mov cr4, eax
        mov eax, PAGES
        mov cr3, eax
        mov ecx, 0xc0000080
        rdmsr
        or eax, 1 << 8
        wrmsr
        mov eax, cr0
        or eax, 0x80000001
        mov cr0, eax
        ret

        .code64
start64:
        mov eax, 0x10
        mov ds, eax
        mov es, eax
        mov ss, eax
        xor eax, eax
        mov fs, eax
        mov gs, eax
        mov rsp, offset boot_stack_end
        lidt [idt_pointer]
        mov edi, ebp
        call guest_main
1:      hlt
        jmp 1b

# Another processor: its number is its local APIC's, and so is its stack. There are stacks for nine.
ap64:   mov eax, 0x10
        mov ds, eax
        mov es, eax
        mov ss, eax
        mov eax, 0xfee00020
        mov edi, [rax]
        shr edi, 24
        cmp edi, 9
        jae 1f
        mov eax, edi
        shl eax, 12
        lea rsp, [rax + ap_stacks]
        lidt [idt_pointer]
        call ap_main
1:      hlt
        jmp 1b

        .code16
        .global trampoline, trampoline_end
trampoline:
        cli
        lgdt cs:[trampoline_gdt - trampoline]
        mov eax, 0x11
        mov cr0, eax
        .byte 0x66, 0xea
        .long TRAMPOLINE + ap32 - trampoline
        .word 0x18
trampoline_gdt:
        .word gdt_end - gdt - 1
        .long gdt
        .code32
ap32:   mov ax, 0x10
        mov ds, ax
        mov ss, ax
        mov esp, TRAMPOLINE + 0x800
        mov eax, offset long_mode
        call eax
        .byte 0xea
        .long ap64
        .word 0x08
trampoline_end:
        .code64

# Down to ring 3 at RDI, with the stack RSI. An exception leads back, see `after_user`.
        .global user_mode
user_mode:
        push 0x23
        push rsi
        push 2
        push 0x3b
        push rdi
        iretq

# A stub for each vector: 16 bytes from `stubs` on. Those with an error code have it on the stack already.
        .balign 16
        .global stubs
stubs:
        .set vector, 0
        .rept 64
        .balign 16
        .if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21)
        .else
        push 0
        .endif
        push vector
        jmp common
        .set vector, vector + 1
        .endr
        .balign 16
common: cld
        .irp register, rax, rcx, rdx, rsi, rdi, r8, r9, r10, r11
        push \register
        .endr
        mov rdi, [rsp + 72]             # the vector
        mov rsi, [rsp + 80]             # the error code
        mov rdx, [rsp + 88]             # where it was: address, code segment
        mov rcx, [rsp + 96]
        call trap
        .irp register, r11, r10, r9, r8, rdi, rsi, rdx, rcx, rax
        pop \register
        .endr
        add rsp, 16
        iretq

        .data
        .balign 16
        .global gdt
gdt:    .quad 0
        .quad 0x00af9b000000ffff        # 0x08: code, 64 bits
        .quad 0x00cf93000000ffff        # 0x10: data
        .quad 0x00cf9b000000ffff        # 0x18: code, 32 bits
        .quad 0x00cff3000000ffff        # 0x20: data, ring 3
        .global gdt_tss
gdt_tss:
        .quad 0, 0                      # 0x28: task state
        .quad 0x00affb000000ffff        # 0x38, as 0x3b: code, 64 bits, ring 3
gdt_end:
gdt_pointer:
        .word gdt_end - gdt - 1
        .quad gdt
        .global idt_pointer
idt_pointer:
        .word 256 * 16 - 1
        .quad idt

        .bss
        .balign 4096
        .skip 0x4000
        .global boot_stack_end
boot_stack_end:
        .global ap_stacks
ap_stacks:
        .skip 0x9000
