#include "tk_conv_output.h"
#include "tk_kernels.h"
#include "tk_window.h"

/* Sums of four neighbouring channels. */
typedef struct {
    int32_t a, b, c, d;
} sums_t;

/* `taps` taps: sums += weight * value, channel by channel; the weights of a tap follow each other `weight_step` apart, the
 * inputs `input_step` apart. */
static inline __attribute__((always_inline)) sums_t add_taps(sums_t sums, const int8_t *weight, int32_t weight_step,
                                                             const int8_t *input, int32_t input_step, int32_t taps)
{
    for (; taps > 0; taps--, weight += weight_step, input += input_step) {
        sums.a += weight[0] * input[0];
        sums.b += weight[1] * input[1];
        sums.c += weight[2] * input[2];
        sums.d += weight[3] * input[3];
    }
    return sums;
}

/* `taps` taps in the padding, all of which have the input's zero point for a value. */
static sums_t add_padding(sums_t sums, const int8_t *weight, int32_t weight_step, int32_t value, int32_t taps)
{
    for (; taps > 0; taps--, weight += weight_step) {
        sums.a += weight[0] * value;
        sums.b += weight[1] * value;
        sums.c += weight[2] * value;
        sums.d += weight[3] * value;
    }
    return sums;
}

/* What the taps in the padding add, to begin with the bias, for four channels. */
static __attribute__((noinline)) sums_t border(const tk_conv_2d_t *p, const tk_window_t *rows, const tk_window_t *columns,
                                               int32_t channel)
{
    const int32_t step = p->in_c;
    const int32_t row_step = p->kernel_w * step;
    const int8_t *weight = p->weights + channel;
    sums_t sums = {p->bias[channel], p->bias[channel + 1], p->bias[channel + 2], p->bias[channel + 3]};
    sums = add_padding(sums, weight, step, p->in_zero, rows->first * p->kernel_w);
    for (int32_t i = rows->first; i < rows->last; i++) {
        const int8_t *line = weight + i * row_step;
        sums = add_padding(sums, line, step, p->in_zero, columns->first);
        sums = add_padding(sums, line + columns->last * step, step, p->in_zero, p->kernel_w - columns->last);
    }
    return add_padding(sums, weight + rows->last * row_step, step, p->in_zero, (p->kernel_h - rows->last) * p->kernel_w);
}

/* One channel of one output pixel: the channels that are left over by fours. */
static __attribute__((noinline)) int8_t one_channel(const tk_conv_2d_t *p, const int8_t *x, const tk_window_t *rows,
                                                    const tk_window_t *columns, int32_t channel)
{
    const int8_t *weight = p->weights + channel;
    int32_t sum = p->bias[channel];
    for (int32_t i = 0; i < p->kernel_h; i++) {
        const int32_t line = (rows->origin + i * p->dilation_h) * p->in_w;
        const int32_t inside = i >= rows->first && i < rows->last;
        for (int32_t j = 0; j < p->kernel_w; j++, weight += p->in_c) {
            int32_t value = p->in_zero;
            if (inside && j >= columns->first && j < columns->last) {
                value = x[(line + columns->origin + j * p->dilation_w) * p->in_c + channel];
            }
            sum += *weight * value;
        }
    }
    return tk_conv_output(p, sum, channel);
}

/* All channels of one output pixel. */
static __attribute__((noinline)) void one_pixel(const tk_conv_2d_t *restrict p, const int8_t *restrict x,
                                                const tk_window_t *restrict rows, const tk_window_t *restrict columns,
                                                int8_t *restrict y)
{
    const int32_t step = p->in_c;
    const int32_t taps = columns->last - columns->first;
    const int32_t lines = rows->last - rows->first;
    const int32_t has_border = taps * lines != p->kernel_h * p->kernel_w;
    const int32_t row = rows->origin + rows->first * p->dilation_h;
    const int32_t column = columns->origin + columns->first * p->dilation_w;
    const int8_t *input = x + (row * p->in_w + column) * step;
    const int8_t *weight = p->weights + (rows->first * p->kernel_w + columns->first) * step;
    const int32_t weight_row = p->kernel_w * step;
    const int32_t input_row = p->in_w * step * p->dilation_h;
    const int32_t input_step = step * p->dilation_w;
    int32_t channel = 0;
    for (; channel + 4 <= step; channel += 4) {
        const int32_t *bias = p->bias + channel;
        sums_t sums = {bias[0], bias[1], bias[2], bias[3]};
        if (has_border != 0) {
            sums = border(p, rows, columns, channel);
        }
        const int8_t *line = input + channel;
        const int8_t *line_weight = weight + channel;
        for (int32_t i = lines; i > 0; i--) {
            sums = add_taps(sums, line_weight, step, line, input_step, taps);
            line += input_row;
            line_weight += weight_row;
        }
        y[channel] = tk_conv_output(p, sums.a, channel);
        y[channel + 1] = tk_conv_output(p, sums.b, channel + 1);
        y[channel + 2] = tk_conv_output(p, sums.c, channel + 2);
        y[channel + 3] = tk_conv_output(p, sums.d, channel + 3);
    }
    for (; channel < step; channel++) {
        y[channel] = one_channel(p, x, rows, columns, channel);
    }
}

void tk_depthwise_conv_2d_m1(const tk_conv_2d_t *restrict p, const int8_t *restrict x, int8_t *restrict y)
{
    for (int32_t row = 0; row < p->out_h; row++) {
        const tk_window_t rows = tk_window(row, p->stride_h, p->pad_top, p->kernel_h, p->dilation_h, p->in_h);
        for (int32_t column = 0; column < p->out_w; column++, y += p->in_c) {
            const tk_window_t columns = tk_window(column, p->stride_w, p->pad_left, p->kernel_w, p->dilation_w, p->in_w);
            one_pixel(p, x, &rows, &columns, y);
        }
    }
}
