#include "tk_add_core.h"
#include "tk_broadcast.h"
#include "tk_kernels.h"

void tk_sub(const tk_add_broadcast_t *p, const int8_t *a, const int8_t *b, int8_t *y)
{
    TK_FOR_EACH_PAIR(&p->shape, a, b, y,
                     tk_add_output(&p->core, tk_add_first(&p->core, *first) - tk_add_second(&p->core, *second)))
}
