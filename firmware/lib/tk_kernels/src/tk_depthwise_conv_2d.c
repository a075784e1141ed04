#include "tk_conv_output.h"
#include "tk_kernels.h"
#include "tk_window.h"

void tk_depthwise_conv_2d(const tk_conv_2d_t *restrict p, const int8_t *restrict x, int8_t *restrict y)
{
    const int32_t per_input = p->out_c / p->in_c;
    for (int32_t row = 0; row < p->out_h; row++) {
        const tk_window_t rows = tk_window(row, p->stride_h, p->pad_top, p->kernel_h, p->dilation_h, p->in_h);
        for (int32_t column = 0; column < p->out_w; column++) {
            const tk_window_t columns = tk_window(column, p->stride_w, p->pad_left, p->kernel_w, p->dilation_w, p->in_w);
            for (int32_t channel = 0; channel < p->out_c; channel++) {
                const int8_t *input = x + channel / per_input;
                const int8_t *weight = p->weights + channel;
                int32_t acc = p->bias[channel];
                for (int32_t i = 0; i < p->kernel_h; i++) {
                    const int32_t line = (rows.origin + i * p->dilation_h) * p->in_w;
                    const int32_t inside = i >= rows.first && i < rows.last;
                    for (int32_t j = 0; j < p->kernel_w; j++, weight += p->out_c) {
                        int32_t value = p->in_zero;
                        if (inside && j >= columns.first && j < columns.last) {
                            value = input[(line + columns.origin + j * p->dilation_w) * p->in_c];
                        }
                        acc += *weight * value;
                    }
                }
                *y++ = tk_conv_output(p, acc, channel);
            }
        }
    }
}
