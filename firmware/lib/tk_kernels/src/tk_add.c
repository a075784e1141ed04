#include "tk_kernels.h"
#include "tk_requantize.h"

void tk_add(const tk_add_t *p, const int8_t *a, const int8_t *b, int8_t *y)
{
    for (int32_t i = 0; i < p->count; i++) {
        const int32_t first = (a[i] - p->a_zero) * (1 << TK_ADD_LEFT_SHIFT);
        const int32_t second = (b[i] - p->b_zero) * (1 << TK_ADD_LEFT_SHIFT);
        const int32_t sum = tk_requantize(first, p->a_multiplier, p->a_shift) + tk_requantize(second, p->b_multiplier, p->b_shift);
        y[i] = tk_clamp(tk_requantize(sum, p->out_multiplier, p->out_shift) + p->out_zero, p->out_min, p->out_max);
    }
}
