/* Fully connected layers over one row, and how int8 weights lie in streams.
 *
 * Packed weights: two channels a, b share words; each half holds 256 * b + a for the same input. The sum of halves
 * times inputs is 256 * B + A. SXTB16 leaves a, so that a second sum is A, and B = (256 * B + A - A) / 256 modulo 2^32:
 * B must stay within 24 bits. One SXTB16 serves two channels, two inputs and any number of columns.
 *
 * Packed stream of tk_rows_t: blocks of two channels, the last one filled up with a channel of zeros, as words:
 *     starts of 256 * B + A and of A,
 *     depth / 4 times: ab(4i, 4i + 2), ab(4i + 1, 4i + 3),
 *     multiplier, addend, shift of a; multiplier, addend, shift of b. In the saturating form, whose sums are scaled by
 *     256, what is added to 256 * A stands for the shift of a, and 0 for that of b.
 * Bit 31 of the last word as in the widened stream.
 *
 * Fully connected layers run four channels a, b, c, d at once; the last four are filled up with channels of zeros.
 * Their columns are inputs in quads as in tk_armv7em_rows.h; `depth` is in_c rounded up to a multiple of 4. Streams:
 * for each four channels
 *     widened: four doubled biases, then depth / 4 times the words a, b, c, d of (4i, 4i + 2), and of (4i + 1, 4i + 3),
 *     of doubled int16 weights;
 *     packed: the starts of 256 * B + A, A, 256 * D + C, C, then depth / 4 times the words ab, cd of (4i, 4i + 2), and
 *     of (4i + 1, 4i + 3);
 * then, where `has_shared_factors` is 0, multiplier, addend, shift of each of the four channels.
 */
#ifndef TK_ARMV7EM_DENSE_H
#define TK_ARMV7EM_DENSE_H

#include <stdint.h>

typedef struct {
    const int32_t *stream;
    uint16_t in_c, out_c;
    uint8_t has_shared_factors;
    int8_t out_min, out_max;            /* clamp */
    int32_t factors[3];                 /* multiplier, addend and shift of all channels, where they are shared */
} tk_fully_connected_dsp_t;

/* x (in_c), y (out_c), scratch: 2 * depth bytes. y must not overlap x. */
void tk_fully_connected_widened(const tk_fully_connected_dsp_t *params, const int8_t *x, int8_t *y, int8_t *scratch);
void tk_fully_connected_packed(const tk_fully_connected_dsp_t *params, const int8_t *x, int8_t *y, int8_t *scratch);

#endif
