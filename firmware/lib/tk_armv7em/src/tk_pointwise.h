/* The loop over the pixels of a 1x1 convolution, with the inner loops of one form of weights. */
#ifndef TK_POINTWISE_H
#define TK_POINTWISE_H

#include "tk_armv7em_rows.h"
#include "tk_widen.h"

typedef void tk_rows_pairs_fn(const tk_rows_t *rows, const int32_t *columns, int8_t *y, int32_t pairs);
typedef void tk_rows_1_fn(const tk_rows_t *rows, const int32_t *column, int8_t *y);

/* Where the next pixel is read. */
typedef struct {
    const int8_t *x, *line;
    int32_t left;                       /* pixels of this line, at least 1 */
} tk_pixel_t;

static inline const int8_t *tk_next_pixel(const tk_pointwise_t *p, tk_pixel_t *pixel, int32_t step, int32_t line_step)
{
    const int8_t *const x = pixel->x;
    pixel->x += step;
    if (--pixel->left == 0) {
        pixel->line += line_step;
        pixel->x = pixel->line;
        pixel->left = p->out_w;
    }
    return x;
}

static inline __attribute__((always_inline)) void tk_pointwise(const tk_pointwise_t *p, const int8_t *x, int8_t *y,
                                                               int8_t *scratch, tk_rows_pairs_fn *rows_pairs,
                                                               tk_rows_1_fn *rows_1)
{
    int32_t *const columns = (int32_t *)(void *)scratch;
    const int32_t step = p->stride_w * p->in_c;
    const int32_t line_step = p->stride_h * p->in_w * p->in_c;
    tk_pixel_t pixel = {x, x, p->out_w};
    int32_t pairs = p->pairs;
    for (int32_t left = p->out_h * p->out_w; left > 0; left -= 2 * pairs, y += 2 * pairs * p->rows.out_c) {
        if (left == 1) {
            tk_widen_1(columns, pixel.x, p->in_c);
            rows_1(&p->rows, columns, y);
            return;
        }
        pairs = pairs < left / 2 ? pairs : left / 2;
        int32_t *to = columns;
        for (int32_t i = pairs; i > 0; i--) {
            const int8_t *first = pixel.x;
            const int8_t *second = first + step;
            if (pixel.left > 2) {
                pixel.x = second + step;
                pixel.left -= 2;
            } else {
                first = tk_next_pixel(p, &pixel, step, line_step);
                second = tk_next_pixel(p, &pixel, step, line_step);
            }
            to = tk_widen_2(to, first, second, p->in_c);
        }
        rows_pairs(&p->rows, columns, y, pairs);
    }
}

#endif
