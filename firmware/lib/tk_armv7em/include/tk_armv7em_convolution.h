/* Convolutions with a window, and first layers: columns of inputs for pairs of output positions, multiplied by tk_rows_*.
 *
 * Order of a column. Each kernel row is kernel_w * in_c bytes of the input that follow each other. Its first row_quads * 4
 * stand in the column as they are, one kernel row after the other. The `rest` bytes that are left of each row (0 .. 3) stand
 * together behind all of them, those of the last kernel row first, filled up to a whole quad with inputs of any value.
 *
 * Bands. Output rows are computed one or two at a time. Where all of their windows lie inside the map, these are read there;
 * else the input rows that they touch are copied to scratch memory first, the padding around them: a band.
 */
#ifndef TK_ARMV7EM_CONVOLUTION_H
#define TK_ARMV7EM_CONVOLUTION_H

#include <stdint.h>

#include "tk_armv7em_rows.h"

/* Sizes in elements, at least 1 unless it says otherwise. */
typedef struct {
    uint16_t in_h, in_w, in_c;
    uint16_t out_h, out_w;
    uint16_t kernel_h, kernel_w;
    uint16_t stride_h, stride_w;
    uint16_t dilation_h, dilation_w;    /* 1: none */
    uint16_t pad_top;                   /* 0: none */
    uint16_t band_rows;                 /* output rows of a band: 1, or 2 where out_w is odd */
    uint16_t band_left, band_inner, band_right; /* columns of a band: padding, map, padding; any may be 0 */
    uint16_t row_quads, rest;           /* kernel_w * in_c = 4 * row_quads + rest; either may be 0 */
    uint16_t rest_quads;                /* of all rests: (kernel_h * rest + 3) / 4 */
    uint16_t batch;                     /* pairs of columns that scratch memory holds */
    int8_t in_zero;                     /* the input's zero point, which the padding holds */
    tk_rows_t rows;                     /* depth: 4 * (kernel_h * row_quads + rest_quads) */
} tk_convolution_t;

/* Any convolution, its weights in the order of a column. y must not overlap x.
 *
 * scratch, one part after the other, each rounded up to 4 bytes:
 *     batch * 4 * depth for pairs of columns,
 *     2 * (4 + 4 * rest_quads) for the rests of two columns,
 *     where dilation_w is not 1, 2 * kernel_h * kernel_w * in_c for two windows without gaps,
 *     ((band_rows - 1) * stride_h + (kernel_h - 1) * dilation_h + 1) * (band_left + band_inner + band_right) * in_c for a band,
 *     where it is needed. */
void tk_convolution_widened(const tk_convolution_t *params, const int8_t *x, int8_t *y, int8_t *scratch);
void tk_convolution_packed(const tk_convolution_t *params, const int8_t *x, int8_t *y, int8_t *scratch);

/* Convolution with kernel 3x3, stride 1 and no dilation, by Winograd's F(2x2, 3x3): 4 multiplications an output instead of 9.
 * in_c is a multiple of 4 up to 64, out_c is even; bands serve two output rows, and their width is a multiple of 4 plus 2.
 * The clamp is int8's.
 *
 * rows.stream: for each pair of channels a, b the transformed weights, 16 times in_c / 4 quads of
 * a(0, 2), b(0, 2), a(1, 3), b(1, 3) int16; then as words twice the biases of a and b; multiplier, addend, shift of a, of b.
 * Weights and biases are scaled as in tk_rows_t. rows.depth and batch are not read.
 *
 * scratch: 64 * in_c + 392 + 8 * out_c bytes, then as above 8 bytes and a band of 4 rows. */
void tk_convolution_winograd(const tk_convolution_t *params, const int8_t *x, int8_t *y, int8_t *scratch);

#endif
