#include "tk_dot.h"
#include "tk_kernels.h"
#include "tk_requantize.h"

void tk_fully_connected(const tk_fully_connected_t *restrict p, const int8_t *restrict x, int8_t *restrict y)
{
    for (int32_t channel = 0; channel < p->out_c; channel += 2) {
        /* With an odd number of channels the last one is computed twice and stored once. */
        const int32_t other = channel + 1 < p->out_c ? channel + 1 : channel;
        int32_t acc[2] = {p->bias[channel], p->bias[other]};
        tk_dot_2x1(p->weights + channel * p->in_c, p->weights + other * p->in_c, x, p->in_c, acc);
        const int32_t first = channel * p->channel_step;
        const int32_t second = other * p->channel_step;
        y[channel] = tk_clamp(tk_requantize(acc[0], p->multiplier[first], p->shift[first]) + p->out_zero, p->out_min,
                              p->out_max);
        y[other] = tk_clamp(tk_requantize(acc[1], p->multiplier[second], p->shift[second]) + p->out_zero, p->out_min,
                            p->out_max);
    }
}
