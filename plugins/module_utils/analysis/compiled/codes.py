# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Define the numbers that the compiled pass and its callers agree on: kinds of events, actions of calls, and columns of tables."""

from __future__ import annotations

NEVER = -(1 << 62)
"""A time before all others, in nanoseconds."""
COMPAT = 1 << 32
"""Added to the number of a call by a 32-bit program. Programs may call any number of 32 bits, so this bit is above those."""
OTHER_CALLS = 1 << 62
"""Stands for all numbers for which there was no room. No system call has it."""
MAX_NUMBER = 1024
"""System calls from this number on have no entry in the table of calls."""

# Kinds of events: what the pass does with them.
(
    OTHER_EVENT,
    RAW_ENTER,
    RAW_EXIT,
    OWN_ENTER,
    OWN_EXIT,
    BIRTH,
    RENAME,
    EXEC,
    THREAD_EXIT,
    SOCKET_STATE,
    SIGNAL,
    OOM,
    PATH,
    EXEC_EXIT,  # the exit of execve where it only tells the new program's architecture
    FUNCTION,  # from here on, events that are only counted
    RING_REQUEST,
    RING_CREATE,
) = range(17)
# Columns of the table of events. The meaning of those from PLACE on depends on the kind, as layouts.py writes them.
# IS_RELATIVE has a bit for each path: 1 if its offset counts from the end of the word that holds it.
KIND, PATHS, EVENT_FAMILY, FIRST_PATH, _SECOND_PATH, _THIRD_PATH, IS_RELATIVE, PLACE = range(8)
EVENT_COLUMNS = 20

# Columns of the table of calls, by number.
(
    FAMILY,  # number of the family of calls whose paths are recorded, or -1
    ACTION,  # what the call does to descriptors, one of the actions below
    FD_ARGUMENT,  # position of the argument that is a descriptor, or -1
    HAS_ENTRY,  # 1 if entries of the call are recorded
    HAS_EXIT,  # 1 if exits of the call are recorded
    IS_SELECTED,  # 1 if the call was asked for
    IS_EXEC,
    IS_CLONE,
    OWN_ERROR,  # the only error of a call whose negative results are values otherwise, or 0
    CLOEXEC_ARGUMENT,  # position of the argument with the flag that lets an exec close the new descriptor, or -1
    CLOEXEC_BITS,  # that flag; without a position: 0 if an exec never closes the descriptor
) = range(11)
CALL_COLUMNS = 11

# Actions of calls.
(
    NO_ACTION,
    OPEN,  # the result is a new descriptor of the path
    CLOSE,
    SOCKET,  # the result is a new socket
    CONNECT,
    ACCEPT,  # the result is a new socket of a peer
    DUP,  # the result is a copy of the descriptor
    DUP_TO,  # the second argument becomes a copy of the descriptor
    FCNTL,
    MAKE,  # the result is a new descriptor of another kind; the kinds' numbers follow MAKE
    TRANSFER,  # reads or writes
    WAIT,  # waits for one of several things; the result 0 is a timeout
    PIPE,
    CLOSE_RANGE,
    END_PROCESS,  # the first argument is the status that the process ends with
) = range(15)
IS_EXEC_EXIT = 1
"""In the column after the places of an exit: the event is syscalls:sys_exit_execve, which tells 64-bit programs from 32-bit ones."""

# Columns of the table of cursors, one row per CPU.
(
    BASE,  # offset of the CPU's slot in the data
    FILLED,  # bytes in the slot
    PAGE,  # offset of the current page in the slot
    AT,  # offset of the next event in the data
    PAGE_END,  # offset of the end of the page's events in the data
    CLOCK,  # raw time so far on the page
    HEAD_TIME,  # of the next event, nanoseconds
    RECORD,  # offset of the next event's record in the data
    LENGTH,  # bytes of the record
    HAS_GAP,  # 1 if events were lost before the next event
    LAST_TIME,  # of the last event that was handled; NEVER before the first
    IS_MISSED,  # 1 if the current page begins behind a loss and no event of it has been found
    CPU_STATE,  # one of the states below
    LAST_ROW,  # row of the thread of the last event
) = range(14)
CURSOR_COLUMNS = 14
NEEDS_PAGES, HAS_EVENT, IS_FINISHED = range(3)

# Answers of the pass.
WANTS_PAGES, IS_FULL, IS_DONE = range(3)

# Columns of the threads that live at this moment of the pass.
(
    TID,
    TASK,  # index in the table of tasks
    IS_PENDING,  # 1 if an entry waits for its exit; SEEDED if the call was under way when the trace began
    NUMBER,  # of the pending call, with COMPAT
    BEGIN,  # time of its entry, nanoseconds
    ARGUMENT,  # the first of six arguments
    _ARGUMENT_1,
    _ARGUMENT_2,
    _ARGUMENT_3,
    _ARGUMENT_4,
    _ARGUMENT_5,
    SOURCE,  # 0: the last end of a call came from raw_syscalls, 1: from syscalls, 2: from both
    LAST_EVENT,  # time of the last entry or exit, nanoseconds
    IS_LAST_EXIT,  # 1 if that was an exit
    LAST_NUMBER,  # number of the call of that event
    MOMENT,  # time of the last birth or exec, nanoseconds
    IS_COMPAT,  # 1 while the thread runs a 32-bit program
    EXEC_STATE,  # 1 after an exec, until it is known which architecture the program has
    IS_NAMED,  # 1 if the name has changed since the last exec
    BEGIN_TASK,  # task of the thread at the entry of the pending call
    PEER_OBJECT,  # peer of a connection that the pending call makes, or 0
    PATH_OBJECT,  # the recorded path that waits for the next call of family 0, or 0; the columns of the other families follow
) = range(22)
MAX_FAMILIES = 24
NO_TID = -1 << 40
SEEDED = 2
THREAD_COLUMNS = PATH_OBJECT + MAX_FAMILIES

# Columns of the table of tasks: a task is a thread as long as its name and process stay the same.
# IS_BIRTH is 1 if the thread was born as this task in the trace.
TASK_TID, TASK_PROCESS, TASK_BEGIN, IS_NAME_GUESSED, IS_BIRTH = range(5)
TASK_COLUMNS = 5
# Columns of the table of hints, threads that are known from elsewhere.
# HINT_COMPAT is 1 if the thread runs a 32-bit program; MAY_BE_COMPAT if it does at the trace's end, and an exec may have made it so.
# The pass writes HAS_EXECUTED there when the thread execs.
HINT_TID, HINT_PROCESS, HINT_COMPAT = range(3)
HINT_COLUMNS = 3
HAS_EXECUTED, MAY_BE_COMPAT = -1, 2
# Columns of the table of processes.
# STATUS is the exit status and one more; 0 where it is not known. LIVING is the number of threads that live, as far as they are known.
# HIGH_… are of the descriptors that it has opened with numbers too high to be followed: how many, when the first and the last one, and the sum
# of the times since the first, in units of 1024 ns.
PID, PARENT, PROCESS_BEGIN, FD_BLOCK, PROCESS_END, OPENED, CLOSED, STATUS, LIVING = range(9)
HIGH_COUNT, HIGH_FIRST, HIGH_LAST, HIGH_TIMES = range(9, 13)
HIGH_SHIFT = 10
PROCESS_COLUMNS = 13

# Kinds of objects.
NOTHING, OTHERS, PATH_TEXT, PEER, SOCKET_KIND, MADE, TARGET = range(7)
NO_OBJECT, OTHER_OBJECTS = 0, 1
"""Indices of two objects that each table has: none, and all objects for which there was no room."""

# Columns of a descriptor.
FD_OBJECT, FD_FLAGS, FD_SINCE = range(3)
FD_COLUMNS = 3
IN_TRACE, IS_CONNECTING, HAS_TRANSFERRED, CLOSES_ON_EXEC = 1, 2, 4, 8

# Outcomes of calls: the number of an error, or 0, together with these bits.
ERRNO_MASK = 0xFFFF
DENIED, CONTINUED, UNFINISHED, TRAPPED, TIMED_OUT, ONLY_EXIT, ONLY_ENTRY, NOT_CONNECTED = (
    1 << bit for bit in range(16, 24)
)
ONE_END = DENIED | CONTINUED | UNFINISHED | ONLY_EXIT | ONLY_ENTRY
"""Bits of calls of which the trace has one end only; their duration is not known."""

# Columns of a cell: a count of calls that agree in the first four.
CELL_TASK, CELL_NUMBER, CELL_OUTCOME, CELL_OBJECT, COUNT, FIRST_END, LAST_END, TOTAL, LONGEST = range(9)
CELL_COLUMNS = 9
# Columns of a row: all calls of one number by one task.
ROW_TASK, ROW_NUMBER, MEASURED, ROW_TOTAL, HISTOGRAM = range(5)
ROW_COLUMNS = 5
OCTAVES, STEPS = 40, 16
"""A histogram of durations has this many powers of two, each in this many steps."""

# Columns of calls in blocks of the stream, and of the calls that are kept.
(
    OUT_BEGIN,
    OUT_END,
    OUT_TASK,
    OUT_NUMBER,
    OUT_ARGUMENT,
    _OUT_1,
    _OUT_2,
    _OUT_3,
    _OUT_4,
    _OUT_5,
    OUT_RESULT,
    OUT_OUTCOME,
    OUT_OBJECT,
    OUT_CPU,
) = range(14)
OUT_COLUMNS = 14

# Columns of events in blocks of the stream, where events are wanted instead of calls. EVENT_TASK is -1 for a thread that is not known.
(
    EVENT_TIME,
    EVENT_CPU,
    EVENT_TYPE,
    EVENT_TID,
    EVENT_TASK,
    EVENT_COMPAT,
    EVENT_RECORD,
    EVENT_LENGTH,
    EVENT_GAP,
) = range(9)

# Columns of other things that happened to a thread.
SIDE_KIND, SIDE_TIME, SIDE_TASK, SIDE_VALUE, SIDE_OTHER = range(5)
SIDE_COLUMNS = 5
DELIVERED, VICTIM = range(2)

# Scalars of the pass.
(
    PAGE_SIZE,
    HEADER_SIZE,  # bytes of a page's header
    COMMIT_SIZE,  # bytes of the header's word with the page's filling
    FACTOR,  # nanoseconds are (raw time * FACTOR) >> SHIFT
    SHIFT,
    FIRST_ENTRY,  # time of the first entry of a call; -NEVER before it
    LAST_GAP_END,  # the latest end of a gap; NEVER without gaps
    SINCE,  # entries before this time may not be recorded
    CHECKS_START,  # 1 if events before each CPU's first event may be lost
    LAST_FIRST,  # the latest of the CPUs' first times
    TASKS,  # number of rows in use, as all that follow
    PROCESSES,
    OBJECTS,
    ARENA,  # bytes in use
    CELLS,
    ROWS,
    HISTOGRAMS,
    KEPT,
    KEPT_FLOOR,  # calls shorter than this are not kept
    OUT,
    SIDES,
    THREADS,
    BLOCKS,
    EVENTS,  # number of all events
    START,  # time of the first event
    END,  # time of the last event
    WANTS_CALLS,  # 1 if the stream of all calls is wanted
    LEFT_OUT,  # calls that were counted under others
    UNKNOWN_EVENTS,  # events of threads for which there was no room
    COMMON_PID,  # offset of the thread in a record
    COMMON_TYPE,
    CAN_TELL,  # 1 if the events tell 32-bit programs from 64-bit ones
    WANTED,  # the CPU whose pages are wanted
    HEAP,  # CPUs in the heap
    CPUS,
    HINTS,
    HAS_POLLED,  # 1 if a kernel thread fetched requests of io_uring
    MIN_LATENCY,  # calls that are shorter, or have one end in the trace, are not counted; 0 for none
    FUNCTIONS,
    THREAD_ROWS,  # rows of the table of threads that have been in use, which are the first ones
    WANTS_EVENTS,  # 1 if the stream of all events is wanted
    FROM,  # when the host looked at the processes at the capture's beginning; -NEVER where that is not known
    UNTIL,  # when it looked at its end; NEVER where that is not known
) = range(43)
SCALARS = 48
