# A guest without an operating system: it does what the first character of its command line says, and tells on the serial line.
# 32 bits, flat, no paging, interrupts off, as PVH starts it. Or as the Linux boot protocol does: then EBX is 0.
        .intel_syntax noprefix
        .code32

        .set COM, 0x3f8
        .set PM, 0x600
        .set MARK, 0x180000             # a word that must be zero at each boot
        .set COUNT, 0x180010            # processors that have started
        .set STACK, 0x1f0000

        .section .note.pvh, "a", @note
        .long 4, 4, 18
        .asciz "Xen"
        .long _start

        .text
        .global _start
_start: mov esp, STACK
        cld
        mov ebp, ebx
        test ebx, ebx
        jz bzimage

        cmp dword ptr [MARK], 0
        je 1f
        mov esi, offset dirty
        call print
1:      mov dword ptr [MARK], 1

        mov esi, [ebp + 24]             # the command line
        movzx eax, byte ptr [esi]
        mov edi, offset table
2:      cmp byte ptr [edi], 0
        je unknown
        cmp [edi], al
        je 3f
        add edi, 5
        jmp 2b
3:      jmp [edi + 1]

        .macro command letter, place
        .byte \letter
        .long \place
        .endm
table:  command 'h', hello
        command 'k', keyboard
        command 'c', chipset
        command 't', triple
        command 's', spin
        command 'p', button
        command 'n', deaf
        command 'f', flood
        command 'm', many
        command 'w', wild
        .byte 0

unknown:
        mov esi, offset what
        call print
        jmp off

# The start information, in hexadecimal.
hello:  cmp dword ptr [ebp], 0x336ec578
        jne unknown
        mov ecx, [ebp + 48]
        mov edi, [ebp + 40]
1:      mov esi, offset ram
        call print
        mov eax, [edi + 4]
        call hex
        mov eax, [edi]
        call hex
        call space
        mov eax, [edi + 12]
        call hex
        mov eax, [edi + 8]
        call hex
        call space
        mov eax, [edi + 16]
        call hex
        call line
        add edi, 24
        loop 1b
        mov esi, offset text
        call print
        mov esi, [ebp + 24]
        call print
        call line
        cmp dword ptr [ebp + 12], 0
        je off
        mov esi, offset disk
        call print
        mov edi, [ebp + 16]
        mov eax, [edi + 8]
        call hex
        call space
        mov esi, [edi]
        call print                      # a text that ends with a zero
        call line
        jmp off

bzimage:
        cmp dword ptr [esi + 0x202], 0x53726448
        jne unknown
        push [esi + 0x228]
        mov esi, offset protocol
        call print
        pop esi
        call print
        call line
        jmp off

keyboard:
        mov esi, offset boot
        call print
        mov al, 0xfe
        out 0x64, al
        mov esi, offset after
        call print
        jmp off

chipset:
        mov esi, offset boot
        call print
        mov dx, 0xcf9
        mov al, 6
        out dx, al
        mov esi, offset after
        call print
        jmp off

triple: mov esi, offset boot
        call print
        lidt [nowhere]
        ud2
        mov esi, offset after
        call print
        jmp off

# A dot every so often, for ever.
spin:   mov al, '.'
        call put
        mov ecx, 2000
1:      dec ecx
        jnz 1b
        jmp spin

# Switch off when the power button is pressed.
button: mov dx, PM + 2
        mov ax, 0x100
        out dx, ax
        mov esi, offset ready
        call print
1:      mov dx, PM
        in ax, dx
        test ax, 0x100
        jz 1b
        mov ax, 0x100
        out dx, ax
        in ax, dx
        test ax, 0x100
        jnz unknown                     # the acknowledgement did not clear it
        mov esi, offset pressed
        call print
        jmp off

deaf:   mov esi, offset ready
        call print
        cli
1:      hlt
        jmp 1b

flood:  mov al, 'x'
        mov dx, COM
1:      out dx, al
        jmp 1b

# Start all other processors, wait until as many as the second character says have counted themselves.
many:   movzx ebx, byte ptr [esi + 1]
        sub ebx, '0' + 1
        mov esi, offset trampoline
        mov edi, 0x8000
        mov ecx, offset trampoline_end - trampoline
        rep movsb
        mov edx, ebx
1:      mov eax, edx                    # each by its number, the last one first
        shl eax, 24
        mov [0xfee00310], eax
        mov dword ptr [0xfee00300], 0x4500
        mov ecx, 10000
2:      dec ecx
        jnz 2b
        mov [0xfee00310], eax
        mov dword ptr [0xfee00300], 0x4608
        dec edx
        jnz 1b
        mov ecx, 3000000
2:      cmp [COUNT], ebx
        je 3f
        dec ecx
        jnz 2b
3:      mov esi, offset counted
        call print
        mov eax, [COUNT]
        call hex
        call line
        jmp off

        .code16
trampoline:
        cli
        lgdt cs:[gdt_pointer - trampoline]
        mov eax, 0x11
        mov cr0, eax
        .byte 0x66, 0xea                # a far jump, into 32 bits
        .long 0x8000 + second - trampoline
        .word 8
        .code32
second: mov ax, 16
        mov ds, ax
        lock inc dword ptr [COUNT]
1:      hlt
        jmp 1b
        .balign 8
gdt:    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
gdt_pointer:
        .word 23
        .long 0x8000 + gdt - trampoline
trampoline_end:

# Write and read ports and device memory at random, but for those that end the machine.
wild:   mov edi, 30000
        mov ebx, 12345
1:      imul ebx, ebx, 1664525
        add ebx, 1013904223
        mov edx, ebx
        shr edx, 16                     # a port
        mov eax, edx
        and eax, 0xfff8
        cmp eax, 0x60
        je 3f
        cmp eax, 0xcf8
        je 3f
        cmp eax, 0x600
        je 3f
        cmp eax, COM                    # the test reads what comes out of it
        je 3f
        mov eax, ebx
        test ebx, 0x100
        jnz 2f
        out dx, eax
        in eax, dx
        out dx, ax
        in ax, dx
        jmp 3f
2:      out dx, al
        in al, dx
3:      mov eax, ebx                    # an address in the hole
        and eax, 0x3fffffff
        or eax, 0xc0000000
        cmp eax, 0xfec00000
        jae 4f
        mov [eax], ebx
        mov ecx, [eax]
        mov [eax], bl
        mov cl, [eax]
4:      dec edi
        jnz 1b
        mov esi, offset alive
        call print
        jmp off

off:    mov dx, PM + 4
        mov ax, (5 << 10) | (1 << 13)
        out dx, ax
        mov esi, offset after
        call print
1:      hlt
        jmp 1b

# AL to the serial line.
put:    push edx
        push eax
        mov dx, COM + 5
1:      in al, dx
        test al, 0x20
        jz 1b
        pop eax
        mov dx, COM
        out dx, al
        pop edx
        ret

# The text at ESI.
print:  lodsb
        test al, al
        jz 1f
        call put
        jmp print
1:      ret

# EAX in eight digits.
hex:    push ecx
        push eax
        mov ecx, 8
1:      rol eax, 4
        push eax
        and eax, 15
        mov al, [digits + eax]
        call put
        pop eax
        loop 1b
        pop eax
        pop ecx
        ret

space:  mov al, ' '
        jmp put
line:   mov al, '\n'
        jmp put

nowhere:        .word 0
                .long 0
digits:         .ascii "0123456789abcdef"
dirty:          .asciz "memory was not cleared\n"
what:           .asciz "not understood\n"
ram:            .asciz "map "
text:           .asciz "line "
disk:           .asciz "disk "
protocol:       .asciz "linux "
boot:           .asciz "boot\n"
after:          .asciz "ran on\n"
ready:          .asciz "ready\n"
pressed:        .asciz "pressed\n"
counted:        .asciz "started "
alive:          .asciz "alive\n"
