/* Bands and columns of convolutions with a window, and the loop over output positions, one copy for each form of weights. */
#ifndef TK_CONVOLUTION_H
#define TK_CONVOLUTION_H

#include "tk_armv7em_convolution.h"

/* The windows of some output rows: the first input of the first one, and the bytes from one input row to the next. */
typedef struct {
    const int8_t *windows;
    int32_t row_bytes;
    int8_t *scratch;                    /* behind the columns */
} tk_band_t;

/* Makes the band of `rows` output rows from `row` on, where one is needed. `scratch` is behind the columns. */
tk_band_t tk_convolution_band(const tk_convolution_t *p, const int8_t *x, int32_t row, int32_t rows, int8_t *scratch);

/* Writes the columns of two windows of a band, interleaved. */
void tk_convolution_columns(const tk_convolution_t *p, const tk_band_t *band, const int8_t *first, const int8_t *second,
                            int32_t *columns);

/* The same for windows of three kernel rows of nine bytes, `step` bytes apart: first layers of three channels. */
void tk_convolution_columns_3x9(int32_t *columns, const int8_t *first, const int8_t *second, int32_t step);

/* The next window of a band. */
typedef struct {
    const int8_t *window, *row;
    int32_t left;                       /* windows that this row still has */
} tk_walk_t;

static inline const int8_t *tk_next_window(const tk_convolution_t *p, tk_walk_t *walk, int32_t row_bytes)
{
    const int8_t *const window = walk->window;
    walk->window += p->stride_w * p->in_c;
    if (--walk->left == 0) {
        walk->row += p->stride_h * row_bytes;
        walk->window = walk->row;
        walk->left = p->out_w;
    }
    return window;
}

typedef void tk_rows_pairs_fn(const tk_rows_t *rows, const int32_t *columns, int8_t *y, int32_t pairs);
typedef void tk_rows_2_fn(const tk_rows_t *rows, const int32_t *columns, int8_t *y0, int8_t *y1);

/* Output positions by pairs, in the order of memory: a pair may straddle the two rows of a band. An odd last one is paired
 * with the one before it again, or with itself. The functions are known where this is expanded. */
static inline __attribute__((always_inline)) void tk_convolve(const tk_convolution_t *p, const int8_t *x, int8_t *y,
                                                              int8_t *scratch, tk_rows_pairs_fn *rows_pairs,
                                                              tk_rows_2_fn *rows_2)
{
    int32_t *const columns = (int32_t *)(void *)scratch;
    const int32_t out_c = p->rows.out_c;
    const int32_t is_3x9 = p->kernel_h == 3 && p->row_quads == 2 && p->rest == 1 && p->dilation_w == 1;
    for (int32_t row = 0; row < p->out_h; row += p->band_rows) {
        const int32_t rows = p->out_h - row < p->band_rows ? p->out_h - row : p->band_rows;
        const tk_band_t band = tk_convolution_band(p, x, row, rows, scratch + p->batch * 4 * p->rows.depth);
        tk_walk_t walk = {band.windows, band.windows, p->out_w};
        const int8_t *second = band.windows;
        int32_t left = rows * p->out_w;
        while (left > 1) {
            int32_t pairs = 0;
            for (; pairs < p->batch && left > 1; pairs++, left -= 2) {
                const int8_t *const first = tk_next_window(p, &walk, band.row_bytes);
                second = tk_next_window(p, &walk, band.row_bytes);
                if (is_3x9) {
                    tk_convolution_columns_3x9(columns + pairs * p->rows.depth, first, second, p->dilation_h * band.row_bytes);
                } else {
                    tk_convolution_columns(p, &band, first, second, columns + pairs * p->rows.depth);
                }
            }
            rows_pairs(&p->rows, columns, y, pairs);
            y += 2 * pairs * out_c;
        }
        if (left == 1) {
            tk_convolution_columns(p, &band, second, walk.window, columns);
            rows_2(&p->rows, columns, rows * p->out_w > 1 ? y - out_c : y, y);
            y += out_c;
        }
    }
}

#endif
