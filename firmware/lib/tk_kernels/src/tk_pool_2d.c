#include "tk_kernels.h"
#include "tk_requantize.h"
#include "tk_window.h"

/* sum / count rounded to nearest, halves away from zero; C's division drops the fraction. */
static int32_t rounded_mean(int32_t sum, int32_t count)
{
    return (sum > 0 ? sum + count / 2 : sum - count / 2) / count;
}

void tk_average_pool_2d(const tk_pool_2d_t *restrict p, const int8_t *restrict x, int8_t *restrict y)
{
    for (int32_t row = 0; row < p->out_h; row++) {
        const tk_window_t rows = tk_window(row, p->stride_h, p->pad_top, p->kernel_h, 1, p->in_h);
        for (int32_t column = 0; column < p->out_w; column++) {
            const tk_window_t columns = tk_window(column, p->stride_w, p->pad_left, p->kernel_w, 1, p->in_w);
            const int32_t count = (rows.last - rows.first) * (columns.last - columns.first);
            for (int32_t channel = 0; channel < p->channels; channel++) {
                int32_t sum = 0;
                for (int32_t i = rows.first; i < rows.last; i++) {
                    const int8_t *input =
                        x + ((rows.origin + i) * p->in_w + columns.origin + columns.first) * p->channels + channel;
                    for (int32_t j = columns.first; j < columns.last; j++, input += p->channels) {
                        sum += *input;
                    }
                }
                *y++ = tk_clamp(rounded_mean(sum, count), p->out_min, p->out_max);
            }
        }
    }
}

void tk_max_pool_2d(const tk_pool_2d_t *restrict p, const int8_t *restrict x, int8_t *restrict y)
{
    for (int32_t row = 0; row < p->out_h; row++) {
        const tk_window_t rows = tk_window(row, p->stride_h, p->pad_top, p->kernel_h, 1, p->in_h);
        for (int32_t column = 0; column < p->out_w; column++) {
            const tk_window_t columns = tk_window(column, p->stride_w, p->pad_left, p->kernel_w, 1, p->in_w);
            for (int32_t channel = 0; channel < p->channels; channel++) {
                int32_t largest = INT8_MIN;
                for (int32_t i = rows.first; i < rows.last; i++) {
                    const int8_t *input =
                        x + ((rows.origin + i) * p->in_w + columns.origin + columns.first) * p->channels + channel;
                    for (int32_t j = columns.first; j < columns.last; j++, input += p->channels) {
                        largest = *input > largest ? *input : largest;
                    }
                }
                *y++ = tk_clamp(largest, p->out_min, p->out_max);
            }
        }
    }
}
