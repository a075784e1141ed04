#include "tk_kernels.h"

void tk_lookup(const tk_lookup_t *p, const int8_t *x, int8_t *y)
{
    const int8_t *zero = p->table + 128;
    for (int32_t i = 0; i < p->count; i++) {
        y[i] = zero[x[i]];
    }
}
