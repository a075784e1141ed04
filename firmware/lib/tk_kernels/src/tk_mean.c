#include "tk_kernels.h"
#include "tk_requantize.h"

void tk_mean(const tk_mean_t *restrict p, const int8_t *restrict x, int8_t *restrict y)
{
    for (int32_t channel = 0; channel < p->channels; channel++) {
        int32_t sum = -p->zero_sum;
        const int8_t *input = x + channel;
        for (int32_t i = 0; i < p->area; i++, input += p->channels) {
            sum += *input;
        }
        y[channel] = tk_clamp(tk_requantize(sum, p->multiplier, p->shift) + p->out_zero, INT8_MIN, INT8_MAX);
    }
}
