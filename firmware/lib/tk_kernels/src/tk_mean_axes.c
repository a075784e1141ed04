#include "tk_kernels.h"
#include "tk_requantize.h"

static int32_t sum_of(const tk_mean_axes_t *restrict p, const int8_t *restrict x)
{
    int32_t sum = 0;
    for (int32_t i = 0; i < p->sum_size[0]; i++) {
        for (int32_t j = 0; j < p->sum_size[1]; j++) {
            const int8_t *input = x + i * p->sum_step[0] + j * p->sum_step[1];
            for (int32_t k = 0; k < p->sum_size[2]; k++, input += p->sum_step[2]) {
                sum += *input;
            }
        }
    }
    return sum;
}

void tk_mean_axes(const tk_mean_axes_t *restrict p, const int8_t *restrict x, int8_t *restrict y)
{
    for (int32_t i = 0; i < p->size[0]; i++) {
        for (int32_t j = 0; j < p->size[1]; j++) {
            for (int32_t k = 0; k < p->size[2]; k++) {
                const int32_t sum = sum_of(p, x + i * p->step[0] + j * p->step[1] + k * p->step[2]) - p->core.zero_sum;
                *y++ = tk_clamp(tk_requantize(sum, p->core.multiplier, p->core.shift) + p->core.out_zero, INT8_MIN, INT8_MAX);
            }
        }
    }
}
