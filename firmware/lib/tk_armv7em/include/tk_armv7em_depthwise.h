/* Depthwise convolutions by planes: four channels at a time are widened into planes of row pairs in scratch, then each
 * output channel runs over its plane, two rows and two columns of outputs at once.
 *
 * Row pair g holds, for each column of the padded map, the word (row 2g, row 2g + 1) of int16, rows counted with the
 * padding. A strip is two output rows; it reads `kernel_pairs` row pairs, the next one begins stride_h pairs below. A
 * band is `strips` strips; its row pairs follow each other in scratch as (pair, plane, column), min(in_c, 4) planes and
 * `columns` words each.
 *
 * The stream holds a record for each output channel: bias, multiplier, addend, shift, then the weights, int16 pairs in
 * the order in which the function reads them. Where shift is 0 the sum becomes SSAT(8, SMMLA(sum, multiplier, addend)
 * ASR #10), else with t = SMMULR(sum, multiplier) SSAT(8, (t - (t < 0) + addend) ASR #shift);
 * tinykd/kernels/requantize.py. For kernels 3x3 the byte above the shift tells how many channels of one group round in
 * the same way from here on; a group is four channels, or where there is a multiplier the channels of one input channel.
 * For kernels 5x5 and 7x7 the stream holds the weights as bytes, a kernel column from top to bottom after the other, 0 up
 * to a whole word, and the byte above the shift tells how far they are to be shifted left: records are made of them in
 * scratch, for four input channels at a time.
 */
#ifndef TK_ARMV7EM_DEPTHWISE_H
#define TK_ARMV7EM_DEPTHWISE_H

#include <stdint.h>

/* Output channel c reads input channel c / multiplier. */
typedef struct {
    uint16_t in_h, in_w, in_c;
    uint16_t out_h, out_w;              /* out_w at least 2 */
    uint16_t multiplier;                /* output channels of each input channel */
    uint16_t stride_h, stride_w;        /* only tk_depthwise_any reads stride_w */
    uint16_t pad_top, pad_left;
    int16_t in_zero, out_min, out_max;
    uint16_t columns;                   /* of the padded map, at least pad_left + in_w */
    uint16_t kernel_pairs;              /* ceil((kernel_h + stride_h) / 2), at least stride_h */
    uint16_t kernel_w;                  /* only tk_depthwise_any reads it */
    uint16_t strips;                    /* of a band, at least 1 */
    uint16_t weight_words;              /* of a channel in the stream */
    const int32_t *stream;              /* (in_c * multiplier, 4 + weight_words) */
} tk_depthwise_t;

/* Kernels 3x3, 5x5 and 7x7 with stride 1. y must not overlap x; it may be x where the multiplier is 1 and the output has
 * the input's size: no channel is read again once its outputs are written, band by band.
 * scratch: ((strips - 1) * stride_h + kernel_pairs) * min(in_c, 4) * columns words, aligned to 4 bytes; then for kernels
 * 5x5 and 7x7 records of 4 + 20 and 4 + 42, with stride 2 4 + 15 and 4 + 28 words for min(in_c, 4) * multiplier channels.
 *
 * The weights of a kernel column, the last column first (among bytes, too): (w0, w1); for i from 1 while 2i + 1 < height
 * (w2i, w2i+1) and (w2i-1, w2i); then the last two weights. */
void tk_depthwise_3x3(const tk_depthwise_t *params, const int8_t *x, int8_t *y, int8_t *scratch);
void tk_depthwise_5x5(const tk_depthwise_t *params, const int8_t *x, int8_t *y, int8_t *scratch);
void tk_depthwise_7x7(const tk_depthwise_t *params, const int8_t *x, int8_t *y, int8_t *scratch);

/* Kernels 3x3, 5x5 and 7x7 with stride 2. Weights of 3x3: (w0, w1) of the columns 0, 1, 2, then w2 of columns (0, 1) and
 * (2, -). Of 5x5: for each i the words (w2i, w2i+1) of all columns, 0 below the last row. Of 7x7: the same for columns 0
 * to 3, then for columns 4 to 6. */
void tk_depthwise_3x3_s2(const tk_depthwise_t *params, const int8_t *x, int8_t *y, int8_t *scratch);
void tk_depthwise_5x5_s2(const tk_depthwise_t *params, const int8_t *x, int8_t *y, int8_t *scratch);
void tk_depthwise_7x7_s2(const tk_depthwise_t *params, const int8_t *x, int8_t *y, int8_t *scratch);

/* Any kernel and stride; with stride 1 y may be x as above. Weights: for each of the kernel_pairs row pairs, for each
 * kernel column, the weights that the first output row has for the pair, then those of the second one. */
void tk_depthwise_any(const tk_depthwise_t *params, const int8_t *x, int8_t *y, int8_t *scratch);

#endif
