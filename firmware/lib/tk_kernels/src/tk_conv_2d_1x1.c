#include "tk_conv_output.h"
#include "tk_dot.h"
#include "tk_kernels.h"

void tk_conv_2d_1x1(const tk_conv_2d_t *restrict p, const int8_t *restrict x, int8_t *restrict y)
{
    const int32_t pixels = p->out_h * p->out_w;
    int32_t pixel = 0;
    for (; pixel + 2 <= pixels; pixel += 2) {
        const int8_t *w0 = p->weights;
        for (int32_t channel = 0; channel < p->out_c; channel += 2) {
            /* With an odd number of channels the last one is computed twice and stored once. */
            const int32_t other = channel + 1 < p->out_c ? channel + 1 : channel;
            const int8_t *w1 = p->weights + other * p->in_c;
            int32_t acc[4] = {p->bias[channel], p->bias[other], p->bias[channel], p->bias[other]};
            tk_dot_2x2(w0, w1, x, x + p->in_c, p->in_c, acc);
            y[channel] = tk_conv_output(p, acc[0], channel);
            y[other] = tk_conv_output(p, acc[1], other);
            y[p->out_c + channel] = tk_conv_output(p, acc[2], channel);
            y[p->out_c + other] = tk_conv_output(p, acc[3], other);
            w0 = w1 + p->in_c;
        }
        x += 2 * p->in_c;
        y += 2 * p->out_c;
    }
    if (pixel < pixels) {
        for (int32_t channel = 0; channel < p->out_c; channel += 2) {
            const int32_t other = channel + 1 < p->out_c ? channel + 1 : channel;
            int32_t acc[2] = {p->bias[channel], p->bias[other]};
            tk_dot_2x1(p->weights + channel * p->in_c, p->weights + other * p->in_c, x, p->in_c, acc);
            y[channel] = tk_conv_output(p, acc[0], channel);
            y[other] = tk_conv_output(p, acc[1], other);
        }
    }
}
