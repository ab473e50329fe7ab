#include <stdio.h>
#include "store.h"

#define LIMIT 8
#define MAX(a, b) ((a) > (b) ? (a) : (b))

/* Keeps items. */
typedef struct store {
    struct item *items;
    int (*compare)(const void *, const void *);
    unsigned size, room[2];
} store_t;

typedef struct { int x, y; } point;
typedef int (*handler)(int);
enum state { OPEN, CLOSED = 2 };
union value { int i; float f; };

static int opened = 0, *last;
extern int store_close(store_t *store);
static int (*hook)(int);

/**
 * Opens a store.
 */
static store_t *store_open(const char *path, int mode)
{
    int local = MAX(mode, LIMIT);
    extern int elsewhere(int);
    store_t *store = malloc(sizeof(*store));
    store->compare(path, path);
    return store;
}

int
main(void) { return 0; }
