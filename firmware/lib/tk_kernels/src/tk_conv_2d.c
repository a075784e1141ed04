#include "tk_conv_output.h"
#include "tk_dot.h"
#include "tk_kernels.h"
#include "tk_window.h"

/* One output pixel, any part of whose window may lie in the padding. (Windows come by reference: gcc's
 * report of a frame leaves out the part of an argument that it spreads over registers and stack.) */
static __attribute__((noinline)) void border_pixel(const tk_conv_2d_t *restrict p, const int8_t *restrict x, const tk_window_t *rows,
                                                   const tk_window_t *columns, int8_t *restrict y)
{
    const int32_t row_weights = p->kernel_w * p->in_c;
    const int32_t filter = p->kernel_h * row_weights;
    for (int32_t channel = 0; channel < p->out_c; channel += 2) {
        /* With an odd number of channels the last one is computed twice and stored once. */
        const int32_t other = channel + 1 < p->out_c ? channel + 1 : channel;
        const int8_t *w0 = p->weights + channel * filter;
        const int8_t *w1 = p->weights + other * filter;
        int32_t acc[2] = {p->bias[channel], p->bias[other]};
        for (int32_t row = 0; row < p->kernel_h; row++, w0 += row_weights, w1 += row_weights) {
            if (row < rows->first || row >= rows->last) {
                tk_sum_2(w0, w1, p->in_zero, row_weights, acc);
                continue;
            }
            const int8_t *line = x + (rows->origin + row * p->dilation_h) * p->in_w * p->in_c;
            const int32_t before = columns->first * p->in_c;
            const int32_t after = columns->last * p->in_c;
            tk_sum_2(w0, w1, p->in_zero, before, acc);
            if (p->dilation_w == 1) {
                tk_dot_2x1(w0 + before, w1 + before, line + columns->origin * p->in_c + before, after - before, acc);
            } else {
                for (int32_t tap = columns->first; tap < columns->last; tap++) {
                    tk_dot_2x1(w0 + tap * p->in_c, w1 + tap * p->in_c,
                               line + (columns->origin + tap * p->dilation_w) * p->in_c, p->in_c, acc);
                }
            }
            tk_sum_2(w0 + after, w1 + after, p->in_zero, row_weights - after, acc);
        }
        y[channel] = tk_conv_output(p, acc[0], channel);
        y[other] = tk_conv_output(p, acc[1], other);
    }
}

/* Two neighbouring output pixels whose windows lie inside the input and whose window rows are contiguous. */
static __attribute__((noinline)) void inner_pixels(const tk_conv_2d_t *restrict p, const int8_t *restrict x0,
                                                   const int8_t *restrict x1, int8_t *restrict y)
{
    const int32_t row_weights = p->kernel_w * p->in_c;
    const int32_t row_inputs = p->in_w * p->in_c * p->dilation_h;
    const int32_t filter = p->kernel_h * row_weights;
    for (int32_t channel = 0; channel < p->out_c; channel += 2) {
        const int32_t other = channel + 1 < p->out_c ? channel + 1 : channel;
        const int8_t *w0 = p->weights + channel * filter;
        const int8_t *w1 = p->weights + other * filter;
        int32_t acc[4] = {p->bias[channel], p->bias[other], p->bias[channel], p->bias[other]};
        for (int32_t row = 0; row < p->kernel_h; row++) {
            tk_dot_2x2(w0 + row * row_weights, w1 + row * row_weights, x0 + row * row_inputs, x1 + row * row_inputs,
                       row_weights, acc);
        }
        y[channel] = tk_conv_output(p, acc[0], channel);
        y[other] = tk_conv_output(p, acc[1], other);
        y[p->out_c + channel] = tk_conv_output(p, acc[2], channel);
        y[p->out_c + other] = tk_conv_output(p, acc[3], other);
    }
}

static int32_t is_whole(tk_window_t window, int32_t kernel)
{
    return window.last - window.first == kernel;
}

void tk_conv_2d(const tk_conv_2d_t *restrict p, const int8_t *restrict x, int8_t *restrict y)
{
    for (int32_t row = 0; row < p->out_h; row++) {
        const tk_window_t rows = tk_window(row, p->stride_h, p->pad_top, p->kernel_h, p->dilation_h, p->in_h);
        const int32_t can_pair = is_whole(rows, p->kernel_h) && p->dilation_w == 1;
        int32_t column = 0;
        while (column < p->out_w) {
            const tk_window_t columns = tk_window(column, p->stride_w, p->pad_left, p->kernel_w, p->dilation_w, p->in_w);
            const tk_window_t next = tk_window(column + 1, p->stride_w, p->pad_left, p->kernel_w, p->dilation_w, p->in_w);
            if (can_pair && column + 1 < p->out_w && is_whole(columns, p->kernel_w) && is_whole(next, p->kernel_w)) {
                const int8_t *corner = x + (rows.origin * p->in_w + columns.origin) * p->in_c;
                inner_pixels(p, corner, corner + p->stride_w * p->in_c, y);
                y += 2 * p->out_c;
                column += 2;
            } else {
                border_pixel(p, x, &rows, &columns, y);
                y += p->out_c;
                column += 1;
            }
        }
    }
}
