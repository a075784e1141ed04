#include "tk_broadcast.h"
#include "tk_kernels.h"
#include "tk_requantize.h"

static int8_t product(const tk_mul_t *p, int32_t a, int32_t b)
{
    const int32_t value = (a - p->a_zero) * (b - p->b_zero);
    return tk_clamp(tk_requantize(value, p->multiplier, p->shift) + p->out_zero, p->out_min, p->out_max);
}

void tk_mul(const tk_mul_t *p, const int8_t *a, const int8_t *b, int8_t *y)
{
    TK_FOR_EACH_PAIR(&p->shape, a, b, y, product(p, *first, *second))
}
