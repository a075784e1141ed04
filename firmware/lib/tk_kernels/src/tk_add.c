#include "tk_add_core.h"
#include "tk_broadcast.h"
#include "tk_kernels.h"

void tk_add(const tk_add_t *p, const int8_t *a, const int8_t *b, int8_t *y)
{
    for (int32_t i = 0; i < p->count; i++) {
        y[i] = tk_add_output(p, tk_add_first(p, a[i]) + tk_add_second(p, b[i]));
    }
}

void tk_add_broadcast(const tk_add_broadcast_t *p, const int8_t *a, const int8_t *b, int8_t *y)
{
    TK_FOR_EACH_PAIR(&p->shape, a, b, y,
                     tk_add_output(&p->core, tk_add_first(&p->core, *first) + tk_add_second(&p->core, *second)))
}
