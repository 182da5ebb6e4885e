// SPDX-FileCopyrightText: The crashcart.fleet contributors
// SPDX-License-Identifier: GPL-3.0-or-later
// Makes system calls like calls.c as a 32-bit program. It needs no library, since a 64-bit machine may lack 32-bit ones.
// The numbers are those of asm/unistd_32.h.
enum { EXIT = 1, FORK = 2, READ = 3, OPEN = 5, CLOSE = 6, EXECVE = 11, GETPID = 20, PAUSE = 29, ALARM = 27, TIMES = 43, FCNTL = 55, SIGACTION = 67,
       GETPPID = 64, SETPGID = 57, GETPGRP = 65, SOCKETCALL = 102, WAITPID = 7, GETPGID = 132, RT_SIGACTION = 174, MMAP2 = 192,
       GETUID32 = 199, FCNTL64 = 221, EVENTFD2 = 328 };
enum { SETOWN = 8, GETOWN = 9, SIGALRM = 14 };

static long call(long number, long first, long second, long third) {
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(first), "c"(second), "d"(third), "S"(8L) : "memory");
    return result;
}

static void handle(int number) {
    (void)number;
    call(GETUID32, 0, 0, 0);
}

static int is(const char *scene, const char *name) {
    while (*scene && *scene == *name) scene++, name++;
    return *scene == *name;
}

static void wait_for_go(void) {
    char byte;
    long go = call(OPEN, (long)"go", 0, 0);
    call(READ, go, (long)&byte, 1);
    call(CLOSE, go, 0, 0);
    call(GETPGID, 0, 0, 0);
}

static void make_calls(void) {
    const char *program[] = {"./calls", "after", 0}, *other[] = {"./calls32", "after", 0};
    struct { void (*handler)(int); unsigned long flags; void *restorer; unsigned long mask[2]; } action = {handle, 0, 0, {0, 0}};
    long pair[2], child;
    long arguments[] = {1, 1, 0, (long)pair};
    call(GETPID, 0, 0, 0);
    call(OPEN, (long)"/nonesuch", 0, 0);
    call(CLOSE, 99, 0, 0);
    call(SOCKETCALL, 8, (long)arguments, 0);
    call(SETPGID, 0, 0, 0);
    call(FCNTL64, pair[0], SETOWN, -call(GETPGRP, 0, 0, 0));
    call(FCNTL64, pair[0], GETOWN, 0);
    call(FCNTL, 99, GETOWN, 0);
    call(65536 + FORK, 0, 0, 0);
    call(MMAP2, 0, 4096, 1);
    call(TIMES, 0, 0, 0);
    // The first handler returns by sigreturn, the second one by rt_sigreturn.
    for (action.flags = 0; action.flags <= 4; action.flags += 4) {
        call(RT_SIGACTION, SIGALRM, (long)&action, 0);
        call(ALARM, 1, 0, 0);
        call(PAUSE, 0, 0, 0);
    }
    child = call(FORK, 0, 0, 0);
    if (!child) call(EXECVE, (long)program[0], (long)program, 0);
    call(WAITPID, child, 0, 0);
    child = call(FORK, 0, 0, 0);
    if (!child) call(EXECVE, (long)other[0], (long)other, 0);
    call(WAITPID, child, 0, 0);
    child = call(FORK, 0, 0, 0);
    if (!child) {
        call(EXECVE, (long)"/nonesuch", (long)other, 0);
        call(GETPPID, 0, 0, 0);
        call(EXIT, 3, 0, 0);
    }
    call(WAITPID, child, 0, 0);
}

__attribute__((noreturn, used)) static void begin(char **words) {
    if (is(words[2], "after"))
        call(CLOSE, 98, 0, 0);
    else
        wait_for_go(), make_calls();
    for (;;) call(EXIT, 0, 0, 0);
}

// At the start the stack holds the number of arguments, and then the arguments.
__asm__(".globl _start\n_start:\n\tpush %esp\n\tcall begin\n");
