#include "tk_broadcast.h"
#include "tk_kernels.h"
#include "tk_requantize.h"

static int8_t prelu(const tk_prelu_t *p, int32_t a, int32_t b)
{
    const int32_t value = a - p->a_zero;
    const int32_t scaled = value >= 0
                               ? tk_requantize(value, p->positive_multiplier, p->positive_shift)
                               : tk_requantize(value * (b - p->b_zero), p->negative_multiplier, p->negative_shift);
    return tk_clamp(scaled + p->out_zero, INT8_MIN, INT8_MAX);
}

void tk_prelu(const tk_prelu_t *p, const int8_t *a, const int8_t *b, int8_t *y)
{
    TK_FOR_EACH_PAIR(&p->shape, a, b, y, prelu(p, *first, *second))
}
