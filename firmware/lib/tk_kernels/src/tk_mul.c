#include "tk_broadcast.h"
#include "tk_kernels.h"
#include "tk_requantize.h"

void tk_mul(const tk_mul_t *p, const int8_t *a, const int8_t *b, int8_t *y)
{
    const tk_broadcast_t *shape = &p->shape;
    for (int32_t row = 0; row < tk_broadcast_rows(shape); row++) {
        const int8_t *first = a + tk_broadcast_start(shape, shape->a_step, row);
        const int8_t *second = b + tk_broadcast_start(shape, shape->b_step, row);
        for (int32_t i = 0; i < shape->size[TK_BROADCAST_LAST]; i++) {
            const int32_t product = (*first - p->a_zero) * (*second - p->b_zero);
            *y++ = tk_clamp(tk_requantize(product, p->multiplier, p->shift) + p->out_zero, p->out_min, p->out_max);
            first += shape->a_step[TK_BROADCAST_LAST];
            second += shape->b_step[TK_BROADCAST_LAST];
        }
    }
}
