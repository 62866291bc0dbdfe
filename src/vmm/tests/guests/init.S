# The first process of a small Linux guest: says hello, loads the modules /a, /b and so on, reads the entropy device, and then
# does what the first character of its last argument says.
        .intel_syntax noprefix
        .globl _start
_start: lea rsi, hello[rip]
        mov edx, offset hello_length
        call print
1:      mov eax, 2                      # open
        lea rdi, module[rip]
        xor esi, esi
        syscall
        test eax, eax
        js 2f                           # no more modules
        mov edi, eax
        mov eax, 313                    # finit_module
        lea rsi, empty[rip]
        xor edx, edx
        syscall
        inc byte ptr module[rip + 1]
        jmp 1b
2:      mov eax, 2                      # open
        lea rdi, device[rip]
        xor esi, esi
        syscall
        mov edi, eax
        xor eax, eax                    # read
        sub rsp, 64
        mov rsi, rsp
        mov edx, 16
        syscall
        add rsp, 64
        cmp rax, 16
        jne 1f
        lea rsi, entropy[rip]
        mov edx, offset entropy_length
        call print
1:      mov edx, 0x4321fedc             # power off
        mov rax, [rsp]
        mov rsi, [rsp + rax * 8]        # the last argument
        cmp byte ptr [rsi], 'r'
        jne 2f
        mov edx, 0x1234567              # restart
2:      mov eax, 169                    # reboot
        mov edi, 0xfee1dead
        mov esi, 672274793
        syscall
3:      pause
        jmp 3b

print:  mov eax, 1                      # write
        mov edi, 1
        syscall
        ret

module: .asciz "/a"
empty:  .asciz ""
device: .asciz "/dev/hwrng"
hello:  .ascii "HELLO-FROM-GUEST\n"
        .set hello_length, . - hello
entropy:
        .ascii "ENTROPY-FROM-DEVICE\n"
        .set entropy_length, . - entropy
