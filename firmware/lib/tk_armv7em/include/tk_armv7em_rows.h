/* Dense inner loops: every output channel of one or two columns, and the layers that need nothing else.
 *
 * A column holds the inputs of one output position, `depth` of them, as int16 in quads: inputs 4i .. 4i + 3 are the two
 * words (4i, 4i + 2), (4i + 1, 4i + 3), written (low, high). Two columns p and q are interleaved word by word:
 * p(4i, 4i + 2), q(4i, 4i + 2), p(4i + 1, 4i + 3), q(4i + 1, 4i + 3). tk_widen.h writes both forms. Columns are aligned
 * to 4 bytes. Excess inputs of the last quad meet weights of 0.
 */
#ifndef TK_ARMV7EM_ROWS_H
#define TK_ARMV7EM_ROWS_H

#include <stdint.h>

/* How sums become outputs; tinykd/kernels/requantize.py has the formulas and the conditions. */
#define TK_ROWS_TWO_SIDED 0             /* SMMLAR, n, shift, limit */
#define TK_ROWS_ONE_SIDED 1             /* SMMLAR, shift, limit */
#define TK_ROWS_SATURATING 2            /* SMMLA, SSAT #8 with ASR #TK_ROWS_SHIFT */
#define TK_ROWS_SHIFT 10

/* A matrix (out_c, depth) with bias and factors of each row. The stream's order depends on the function that reads it.
 *
 * Widened: blocks of two channels a, b, the last one filled up with a channel of zeros, as words:
 *     bias a, bias b,
 *     depth / 4 times: a(4i, 4i + 2), b(4i, 4i + 2), a(4i + 1, 4i + 3), b(4i + 1, 4i + 3) of int16 weights,
 *     multiplier, addend, shift of a; multiplier, addend, shift of b; or in the saturating form
 *     multiplier, addend of a; multiplier, addend of b; 0.
 * Bit 31 of a block's last word is set in the last block of two real channels, and in the one with a channel of zeros.
 * Weights and biases are doubled, or in the saturating form scaled by the power of two of their channel. */
typedef struct {
    const int32_t *stream;
    uint16_t depth;                     /* inputs of a column, a multiple of 4, at least 4 */
    uint16_t out_c;                     /* at least 1 */
    int8_t out_min, out_max;            /* clamp */
    uint8_t form;                       /* TK_ROWS_... */
} tk_rows_t;

/* All channels of two interleaved columns: y0 (out_c) of the first, y1 (out_c) of the second. y0 may be y1. */
void tk_rows_widened_2(const tk_rows_t *rows, const int32_t *columns, int8_t *y0, int8_t *y1);

/* The same for pairs of columns that stand one behind the other, `depth` words each; all outputs follow each other. */
void tk_rows_widened_pairs(const tk_rows_t *rows, const int32_t *columns, int8_t *y, int32_t pairs);

/* All channels of one column: y (out_c). */
void tk_rows_widened_1(const tk_rows_t *rows, const int32_t *column, int8_t *y);

/* The same with int8 weights, which are unpacked in the loop; tk_armv7em_dense.h describes their streams. */
void tk_rows_packed_2(const tk_rows_t *rows, const int32_t *columns, int8_t *y0, int8_t *y1);
void tk_rows_packed_pairs(const tk_rows_t *rows, const int32_t *columns, int8_t *y, int32_t pairs);
void tk_rows_packed_1(const tk_rows_t *rows, const int32_t *column, int8_t *y);

/* Convolution with kernel 1x1 and no padding, also a fully connected layer over several rows. Pixels that are all used,
 * in the order of memory, are one line: out_h is 1. */
typedef struct {
    uint16_t in_w, in_c;                /* in_w and stride_h are not read where out_h is 1 */
    uint16_t out_h, out_w;
    uint16_t stride_h, stride_w;
    uint16_t pairs;                     /* pairs of columns that scratch holds, at least 1 */
    tk_rows_t rows;                     /* depth: in_c rounded up to a multiple of 4 */
} tk_pointwise_t;

/* scratch: 4 * depth * pairs bytes. y must not overlap x. */
void tk_pointwise_widened(const tk_pointwise_t *params, const int8_t *x, int8_t *y, int8_t *scratch);
void tk_pointwise_packed(const tk_pointwise_t *params, const int8_t *x, int8_t *y, int8_t *scratch);

#endif
