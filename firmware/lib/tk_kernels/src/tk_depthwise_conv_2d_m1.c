#include "tk_conv_output.h"
#include "tk_kernels.h"
#include "tk_window.h"

/* `taps` taps in the padding: acc[k] += weight[k] * value for `width` channels. Returns the weight after them. */
static inline __attribute__((always_inline)) const int8_t *padding_taps(const int8_t *weight, int32_t step, int32_t taps,
                                                                        int32_t value, int32_t width, int32_t acc[4])
{
    for (; taps > 0; taps--, weight += step) {
#pragma GCC unroll 4
        for (int32_t k = 0; k < width; k++) {
            acc[k] += weight[k] * value;
        }
    }
    return weight;
}

/* `width` channels (1 or 4, a constant in each caller) of one output pixel, starting at `channel`. */
static inline __attribute__((always_inline)) void channels(const tk_conv_2d_t *p, const int8_t *x, tk_window_t rows,
                                                           tk_window_t columns, int32_t channel, int32_t width, int8_t *y)
{
    const int32_t step = p->in_c;
    const int32_t input_step = step * p->dilation_w;
    const int8_t *weight = p->weights + channel;
    const int8_t *line = x + ((rows.origin + rows.first * p->dilation_h) * p->in_w + columns.origin) * step +
                         columns.first * input_step + channel;
    int32_t acc[4] = {0, 0, 0, 0};
    for (int32_t k = 0; k < width; k++) {
        acc[k] = p->bias[channel + k];
    }
    weight = padding_taps(weight, step, rows.first * p->kernel_w, p->in_zero, width, acc);
    for (int32_t i = rows.first; i < rows.last; i++) {
        const int8_t *input = line;
        weight = padding_taps(weight, step, columns.first, p->in_zero, width, acc);
        for (int32_t j = columns.first; j < columns.last; j++) {
#pragma GCC unroll 4
            for (int32_t k = 0; k < width; k++) {
                acc[k] += weight[k] * input[k];
            }
            weight += step;
            input += input_step;
        }
        weight = padding_taps(weight, step, p->kernel_w - columns.last, p->in_zero, width, acc);
        line += p->in_w * step * p->dilation_h;
    }
    padding_taps(weight, step, (p->kernel_h - rows.last) * p->kernel_w, p->in_zero, width, acc);
    for (int32_t k = 0; k < width; k++) {
        y[k] = tk_conv_output(p, acc[k], channel + k);
    }
}

void tk_depthwise_conv_2d_m1(const tk_conv_2d_t *p, const int8_t *x, int8_t *y)
{
    for (int32_t row = 0; row < p->out_h; row++) {
        const tk_window_t rows = tk_window(row, p->stride_h, p->pad_top, p->kernel_h, p->dilation_h, p->in_h);
        for (int32_t column = 0; column < p->out_w; column++) {
            const tk_window_t columns = tk_window(column, p->stride_w, p->pad_left, p->kernel_w, p->dilation_w, p->in_w);
            int32_t channel = 0;
            for (; channel + 4 <= p->in_c; channel += 4, y += 4) {
                channels(p, x, rows, columns, channel, 4, y);
            }
            for (; channel < p->in_c; channel++, y++) {
                channels(p, x, rows, columns, channel, 1, y);
            }
        }
    }
}
