#include "tk_kernels.h"
#include "tk_requantize.h"

/* The first kernel tap of an output position, counted in the full output: taps `stride` apart meet an input position. */
static int32_t first_tap(int32_t position, int32_t stride)
{
    const int32_t rest = position % stride;
    return rest < 0 ? rest + stride : rest;
}

/* sum((x - in_zero) * w) over the channels of one input position. */
static int32_t dot(const int8_t *restrict x, const int8_t *restrict w, int32_t in_zero, int32_t count)
{
    int32_t sum = 0;
    for (int32_t i = 0; i < count; i++) {
        sum += (x[i] - in_zero) * w[i];
    }
    return sum;
}

static int32_t accumulate(const tk_transpose_conv_t *restrict p, const int8_t *restrict x, const int8_t *restrict filter,
                          int32_t row, int32_t column)
{
    int32_t acc = 0;
    for (int32_t k = first_tap(row, p->stride_h); k < p->kernel_h; k += p->stride_h) {
        const int32_t in_row = (row - k) / p->stride_h;
        if (row < k || in_row >= p->in_h) {
            continue;
        }
        for (int32_t l = first_tap(column, p->stride_w); l < p->kernel_w; l += p->stride_w) {
            const int32_t in_column = (column - l) / p->stride_w;
            if (column >= l && in_column < p->in_w) {
                acc += dot(x + (in_row * p->in_w + in_column) * p->in_c, filter + (k * p->kernel_w + l) * p->in_c, p->in_zero,
                           p->in_c);
            }
        }
    }
    return acc;
}

void tk_transpose_conv(const tk_transpose_conv_t *restrict p, const int8_t *restrict x, int8_t *restrict y)
{
    const int32_t filter = p->kernel_h * p->kernel_w * p->in_c;
    for (int32_t row = 0; row < p->out_h; row++) {
        for (int32_t column = 0; column < p->out_w; column++) {
            for (int32_t channel = 0; channel < p->out_c; channel++) {
                const int32_t acc = p->bias[channel] + accumulate(p, x, p->weights + channel * filter, row + p->pad_top,
                                                                  column + p->pad_left);
                *y++ = tk_clamp(tk_requantize(acc, p->multiplier[channel], p->shift[channel]) + p->out_zero, p->out_min,
                                p->out_max);
            }
        }
    }
}
