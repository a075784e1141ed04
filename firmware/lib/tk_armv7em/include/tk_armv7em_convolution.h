/* Convolutions with a window, and first layers: columns of inputs are gathered for pairs of output positions, then
 * multiplied by tk_rows_*_2.
 *
 * Order of a column. Each kernel row is kernel_w * in_c bytes of the input that follow each other. Its first row_quads * 4
 * stand in the column as they are, one kernel row after the other. The `rest` bytes that are left of each row (0 .. 3) stand
 * together behind all of them, those of the last kernel row first, filled up to a whole quad with inputs of any value.
 */
#ifndef TK_ARMV7EM_CONVOLUTION_H
#define TK_ARMV7EM_CONVOLUTION_H

#include <stdint.h>

#include "tk_armv7em_rows.h"

/* Where the inputs of an output position lie. Sizes in elements, at least 1 unless it says otherwise. */
typedef struct {
    uint16_t in_h, in_w, in_c;
    uint16_t out_w;
    uint16_t kernel_h, kernel_w;
    uint16_t stride_h, stride_w;
    uint16_t dilation_h, dilation_w;
    uint16_t pad_top, pad_left;         /* 0: none */
    uint16_t inner_h, inner_w;          /* positions of the first tap for which all are inside the map: rows 0 .. inner_h - 1,
                                           columns 0 .. inner_w - 1; inner_w is 0 where dilation_w is not 1 */
    uint16_t row_quads, rest;           /* kernel_w * in_c = 4 * row_quads + rest */
    uint16_t rest_quads;                /* of all rests: (kernel_h * rest + 3) / 4 */
    int8_t in_zero;                     /* the input's zero point, which the padding holds */
} tk_columns_t;

/* Writes the columns of output positions `first` and `second` (row * out_w + column), interleaved, to scratch, and uses what
 * lies behind them. */
void tk_columns_gather(const tk_columns_t *columns, const int8_t *x, int32_t first, int32_t second, int8_t *scratch);

typedef struct {
    tk_columns_t columns;
    tk_rows_t rows;                     /* depth: 4 * (kernel_h * row_quads + rest_quads) */
    int32_t positions;                  /* out_h * out_w */
} tk_convolution_t;

/* Any convolution, its weights in the order of a column. y must not overlap x.
 *
 * scratch: 4 * depth bytes for two columns, then for each of them its rests, 4 + 4 * rest_quads bytes, then for each of them
 * its window, kernel_h * kernel_w * in_c bytes rounded up to 4. */
void tk_convolution_widened(const tk_convolution_t *params, const int8_t *x, int8_t *y, int8_t *scratch);
void tk_convolution_packed(const tk_convolution_t *params, const int8_t *x, int8_t *y, int8_t *scratch);

#endif
