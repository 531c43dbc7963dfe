/* Threads that share the items of a step's phases.

   A step is a list of phases; a phase is a number of items that may run at the same time. One 64-bit ticket holds
   (phase, next item); a thread claims an item by compare-and-swap, and the thread that completes a phase's last item
   opens the next phase. A thread that the system takes off its core while it holds no item is waited for by nobody.
   Phases are numbered over all steps, so an old ticket never comes back (within 2^32 phases). */
#ifndef MIDWATCH_THREADS_H
#define MIDWATCH_THREADS_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#define MAX_THREADS 256
#define SPINS_BEFORE_YIELD 2000
#define IDLE_NS 60000

typedef struct {
    int32_t kind, layer, items, unused;
} Phase;

typedef struct Threads Threads;
typedef void (*RunItem)(void *context, const Phase *phase, int item, int thread);

struct Threads {
    _Atomic uint64_t ticket;
    char pad0[56];
    _Atomic int32_t done;
    char pad1[60];
    Phase *phases;           /* of the current step */
    int32_t num_phases, room;
    uint32_t base;           /* number of the step's first phase */
    RunItem run;
    void *context;
    int count, started;      /* threads, the caller's own included */
    pthread_t handles[MAX_THREADS];
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    _Atomic uint32_t steps;
    _Atomic int stop;
};

typedef struct {
    Threads *threads;
    int index;
} Start;

INLINE void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

INLINE int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

INLINE void open_phase(Threads *t, uint32_t number) {
    /* Past the last phase no item can be claimed, whatever a late worker reads while the next step is laid out. */
    uint64_t item = number - t->base == (uint32_t)t->num_phases ? UINT32_MAX : 0;
    atomic_store_explicit(&t->done, 0, memory_order_relaxed);
    atomic_store_explicit(&t->ticket, (uint64_t)number << 32 | item, memory_order_release);
}

/* Work until the step that is under way is computed. */
static void work(Threads *t, int index) {
    int idle = 0;
    for (;;) {
        uint64_t ticket = atomic_load_explicit(&t->ticket, memory_order_acquire);
        uint32_t number = (uint32_t)(ticket >> 32), item = (uint32_t)ticket, place = number - t->base;
        if (place >= (uint32_t)t->num_phases) return;
        /* A stale ticket may meet the next step's phases here; then the exchange below fails. */
        int32_t items = t->phases[place].items;
        if (item < (uint32_t)items &&
            atomic_compare_exchange_weak_explicit(&t->ticket, &ticket, ticket + 1, memory_order_acq_rel,
                                                  memory_order_relaxed)) {
            t->run(t->context, &t->phases[place], (int)item, index);
            if (atomic_fetch_add_explicit(&t->done, 1, memory_order_acq_rel) + 1 == items) open_phase(t, number + 1);
            idle = 0;
        } else if (item >= (uint32_t)items) {
            if (++idle < SPINS_BEFORE_YIELD)
                pause_briefly();
            else
                sched_yield();
        }
    }
}

static void *worker(void *argument) {
    Start start = *(Start *)argument;
    free(argument);
    Threads *t = start.threads;
    uint32_t seen = 0;
    for (;;) {
        int64_t since = now_ns();
        while (atomic_load_explicit(&t->steps, memory_order_acquire) == seen && !atomic_load(&t->stop)) {
            if (now_ns() - since < IDLE_NS) {
                for (int i = 0; i < 32; i++) pause_briefly();
                sched_yield();
                continue;
            }
            pthread_mutex_lock(&t->mutex);
            while (atomic_load(&t->steps) == seen && !atomic_load(&t->stop)) pthread_cond_wait(&t->wake, &t->mutex);
            pthread_mutex_unlock(&t->mutex);
        }
        if (atomic_load(&t->stop)) return NULL;
        seen = atomic_load_explicit(&t->steps, memory_order_acquire);
        work(t, start.index);
    }
}

static Threads *threads_new(int count, RunItem run, void *context) {
    Threads *t = aligned_alloc(64, (sizeof(Threads) + 63) & ~(size_t)63);
    if (!t) return NULL;
    memset(t, 0, sizeof *t);
    t->count = count < 1 ? 1 : count > MAX_THREADS ? MAX_THREADS : count;
    t->run = run;
    t->context = context;
    pthread_mutex_init(&t->mutex, NULL);
    pthread_cond_init(&t->wake, NULL);
    return t;
}

static void start_workers(Threads *t) {
    for (t->started = 1; t->started < t->count; t->started++) {
        Start *start = malloc(sizeof *start);
        if (!start) return; /* fewer threads are slower, not wrong */
        start->threads = t;
        start->index = t->started;
        if (pthread_create(&t->handles[t->started], NULL, worker, start)) {
            free(start);
            return;
        }
    }
}

/* Make room for the phases of a step; nobody works. Returns 0 if memory is out. */
static int reserve_phases(Threads *t, int count) {
    if (count <= t->room) return 1;
    /* The old list is kept alive: a late worker may still look at it. It grows a handful of times at most. */
    Phase *phases = calloc((size_t)count, sizeof *phases);
    if (!phases) return 0;
    t->phases = phases;
    t->room = count;
    return 1;
}

static void run_phases(Threads *t) {
    if (!t->started) start_workers(t);
    open_phase(t, t->base);
    if (t->started > 1) {
        pthread_mutex_lock(&t->mutex);
        atomic_fetch_add_explicit(&t->steps, 1, memory_order_release);
        pthread_cond_broadcast(&t->wake);
        pthread_mutex_unlock(&t->mutex);
    }
    work(t, 0);
}

static void threads_free(Threads *t) {
    if (!t) return;
    pthread_mutex_lock(&t->mutex);
    atomic_store(&t->stop, 1);
    pthread_cond_broadcast(&t->wake);
    pthread_mutex_unlock(&t->mutex);
    for (int i = 1; i < t->started; i++) pthread_join(t->handles[i], NULL);
    pthread_mutex_destroy(&t->mutex);
    pthread_cond_destroy(&t->wake);
    free(t->phases);
    free(t);
}

#endif
