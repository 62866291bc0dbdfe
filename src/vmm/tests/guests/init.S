# The first process of a small Linux guest: says hello, and then what the first character of its argument says.
        .intel_syntax noprefix
        .globl _start
_start: mov eax, 1                      # write
        mov edi, 1
        lea rsi, hello[rip]
        mov edx, offset length
        syscall
        mov edx, 0x4321fedc             # power off
        mov rsi, [rsp + 16]             # the first argument
        test rsi, rsi
        jz 1f
        cmp byte ptr [rsi], 'r'
        jne 1f
        mov edx, 0x1234567              # restart
1:      mov eax, 169                    # reboot
        mov edi, 0xfee1dead
        mov esi, 672274793
        syscall
2:      pause
        jmp 2b
hello:  .ascii "HELLO-FROM-GUEST\n"
        .set length, . - hello
