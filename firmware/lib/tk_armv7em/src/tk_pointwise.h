/* The loop over the pixels of a 1x1 convolution, with the inner loops of one form of weights. */
#ifndef TK_POINTWISE_H
#define TK_POINTWISE_H

#include "tk_armv7em_rows.h"
#include "tk_widen.h"

typedef void tk_rows_2_fn(const tk_rows_t *rows, const int32_t *columns, int8_t *y0, int8_t *y1);
typedef void tk_rows_1_fn(const tk_rows_t *rows, const int32_t *column, int8_t *y);

static inline __attribute__((always_inline)) void tk_pointwise(const tk_pointwise_t *p, const int8_t *x, int8_t *y,
                                                               int8_t *scratch, tk_rows_2_fn *rows_2, tk_rows_1_fn *rows_1)
{
    int32_t *const columns = (int32_t *)(void *)scratch;
    const int32_t out_c = p->rows.out_c;
    const int32_t step = p->stride_w * p->in_c;
    const int32_t line = p->stride_h * p->in_w * p->in_c;
    const int8_t *first = 0;
    for (int32_t row = 0; row < p->out_h; row++, x += line) {
        const int8_t *pixel = x;
        for (int32_t left = p->out_w; left > 0; left--, pixel += step) {
            if (!first) {
                first = pixel;
                continue;
            }
            tk_widen_2(columns, first, pixel, p->in_c);
            rows_2(&p->rows, columns, y, y + out_c);
            y += 2 * out_c;
            first = 0;
        }
    }
    if (first) {
        tk_widen_1(columns, first, p->in_c);
        rows_1(&p->rows, columns, y);
    }
}

#endif
