/* The wall clock of a machine whose time is wrong: in a program that this is loaded into before the C library, it is ahead
   by as many seconds as CLOCK_AHEAD_S says. The clock that measures durations is left alone. */

#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *at) {
    int failed = (int)syscall(SYS_clock_gettime, clock, at);
    const char *ahead = getenv("CLOCK_AHEAD_S");
    if (failed == 0 && clock == CLOCK_REALTIME && ahead != NULL)
        at->tv_sec += atol(ahead);
    return failed;
}
